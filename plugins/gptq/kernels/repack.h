#pragma once

#include <cstdint>
#include <vector>

#include "kernels/panels.h"

// GPTQ's packed words as panels, and back. Codes of 2, 3 and 4 bits take 4 bits there.

namespace graft::gptq {

/// Inputs sorted by group, so that the groups of a panel are regions of it.
struct Sorting {
  /// Whether the groups have `group_size` inputs each, but for one: panels need that.
  bool even = false;
  std::vector<std::int32_t> order;   ///< packed input i is input order[i]; empty: they are in order
  std::vector<std::int32_t> groups;  ///< group p of a panel is groups[p]; a short one comes last
};

/// `group` [inputs], in range. Inputs of one group keep their order.
Sorting sort_by_group(const std::int32_t* group, std::int64_t inputs, std::int64_t group_size);

/// Whether words and inputs end together: other words have bits that no panel keeps.
constexpr bool whole_words(std::int64_t inputs, int bits) { return inputs * bits % 32 == 0; }

constexpr kernels::PanelKind panel_kind(int bits) {
  return bits == 8 ? kernels::PanelKind::int8 : kernels::PanelKind::int4;
}

/// Words of some outputs: [words(K)] rows, `stride` apart; `order` [K] or null.
struct PackedWords {
  std::uint32_t* words;
  std::int64_t stride;
  int bits;
  const std::int32_t* order;
};

/// Writes panels [first, last) of `shape` from the words of all outputs. Any thread, panels in
/// parallel.
void pack(const kernels::PanelShape& shape, const PackedWords& from, std::int64_t first,
          std::int64_t last, std::uint8_t* codes);

/// Writes the words of panels [first, last), of panel `first` from to.words on; they are zero
/// before. Any thread, panels in parallel.
void unpack(const kernels::PanelShape& shape, const std::uint8_t* codes, std::int64_t first,
            std::int64_t last, const PackedWords& to);

}  // namespace graft::gptq
