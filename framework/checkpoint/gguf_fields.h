#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "checkpoint/gguf_header.h"

namespace graft {

/// The metadata of one architecture, read field by field: "llama.block_count" is the field
/// "block_count". Knows which fields nobody asked for. All functions throw Error(model) naming the
/// key.
class GgufFields {
 public:
  GgufFields(const GgufHeader& header, std::string architecture)
      : header_(&header), prefix_(std::move(architecture) + ".") {}

  bool has(std::string_view field) const;
  std::int64_t size(std::string_view field);  ///< required, 1 to 2^31 - 1
  std::int64_t size(std::string_view field, std::int64_t otherwise);
  double positive(std::string_view field);  ///< required, above 0 and finite
  double positive(std::string_view field, double otherwise);
  std::string string(std::string_view field, std::string_view otherwise);
  /// The field is absent, or is this number or bool; anything else is refused because of `why`.
  void require(std::string_view field, double only, std::string_view why);
  /// The field makes no difference.
  void ignore(std::string_view field) { used_.insert(std::string(field)); }
  /// Throws for a field that was neither asked for nor ignored: it might change results.
  void finish() const;

 private:
  const GgufValue* find(std::string_view field);
  template <class Read>
  auto read(std::string_view field, Read get);

  const GgufHeader* header_;
  std::string prefix_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace graft
