#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// What model.safetensors.index.json says: which shard holds which tensor.
struct ShardIndex {
  std::vector<std::string> shards;  ///< file names without folder, in natural order
  std::vector<std::pair<std::string, std::uint32_t>> weight_map;  ///< tensor, position in shards
};

/// Parses and checks the index: tensors occur once, shards are plain file names. Throws
/// Error(model). Time and memory are linear in `text`.
ShardIndex parse_shard_index(std::string_view text, std::size_t max_tensors);

}  // namespace graft
