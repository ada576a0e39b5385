#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/gguf_blocks.h"
#include "checkpoint/gguf_value.h"

namespace graft {

/// One tensor; row-major, so its shape is that of the file reversed.
struct GgufTensor {
  std::string_view name;  ///< UTF-8; print it through quote()
  const BlockFormat* format = nullptr;
  std::vector<std::int64_t> shape;  ///< 1 to 4 dimensions; the last one is whole blocks
  std::uint64_t offset = 0;         ///< from the start of the file
  std::uint64_t bytes = 0;
};

/// All that comes before the data of a GGUF file, every number checked against the file.
class GgufHeader {
 public:
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  ///< in order of the file
  const GgufTensor* find_tensor(std::string_view name) const;

  const std::vector<std::pair<std::string_view, GgufValue>>& metadata() const { return metadata_; }
  const GgufValue* find(std::string_view key) const;
  /// Throws Error(model) naming the key when it is missing.
  const GgufValue& at(std::string_view key) const;

 private:
  friend std::optional<GgufHeader> parse_gguf_header(std::shared_ptr<const std::string> start,
                                                     std::uint64_t file_size);

  std::shared_ptr<const std::string> start_;                      ///< what the views look into
  std::vector<std::pair<std::string_view, GgufValue>> metadata_;  ///< sorted by key
  std::vector<GgufTensor> tensors_;
  std::vector<std::uint32_t> by_name_;  ///< indices into tensors_
};

/// Parses what comes before the data of a GGUF file (version 2 or 3, little-endian) of which
/// `start` holds the first bytes; nothing when they are not enough, which cannot be when they are
/// the whole file. Tensors must lie one behind the other, as writers leave them. Throws
/// Error(model). Time is linear but for sorting keys and names; memory is below 16 times `start`.
/// Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
std::optional<GgufHeader> parse_gguf_header(std::shared_ptr<const std::string> start,
                                            std::uint64_t file_size);

}  // namespace graft
