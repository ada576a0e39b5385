#pragma once

#include <cstddef>
#include <cstdint>

// The packed layout of quantized weights that the CPU kernels multiply with, the same at every CPU
// level. It knows numbers of bits, not checkpoint formats: plugins write it through pack_panels.
//
// A panel is 16 outputs. A step is 8 consecutive inputs of one panel; dword j of a line belongs to
// output j:
//   4 bits: one line of 64 bytes, the low nibbles of the dword's bytes are inputs 0..3, the high
//           nibbles inputs 4..7, so that `line & 15` and `line >> 4 & 15` are operands of a dot;
//   8 bits: two lines, inputs 0..3 and inputs 4..7.
// Panels are stored whole, step after step, so that a thread reads one contiguous region. Each
// group of inputs starts at a step of its own; what fills up its last step has code 0 and meets x =
// 0.

namespace graft::kernels {

inline constexpr std::int64_t kPanelWidth = 16;  ///< outputs of a panel
inline constexpr std::int64_t kStep = 8;         ///< inputs of a step
/// Steps of a block: x is quantized in blocks of at most 128 inputs that never cross a group.
inline constexpr std::int64_t kBlockSteps = 16;

/// Element types of x, y and scales at the border of the kernels.
enum class ElementType { f32, bf16, f16 };

/// How a code becomes a number, times the scale of its group.
enum class PanelKind {
  int4,    ///< code - zero, code 0..15, zero 0..16
  int8,    ///< code - zero, code 0..255, zero 0..256
  table4,  ///< table[code], code 0..15
};

/// A weight's shape [n, k], its group size, and the sizes that follow. Plain fields, so that files
/// of a CPU level need no function of a header.
struct PanelShape {
  PanelKind kind = PanelKind::int4;
  std::int64_t n = 0, k = 0;
  std::int64_t group = 0;   ///< inputs that share a scale; the last group may be shorter
  std::int64_t panels = 0;  ///< ceil(n / 16)
  std::int64_t groups = 0;  ///< ceil(k / group)
  std::int64_t steps_of_group = 0, steps_of_last_group = 0;
  std::int64_t steps = 0;   ///< of a panel
  std::int64_t blocks = 0;  ///< of x, over all groups
  std::int64_t step_bytes = 0, panel_bytes = 0;
  std::int64_t code_bytes = 0;   ///< of all panels
  std::int64_t scale_count = 0;  ///< [panel][group][16]
  /// [panel][group][16] too: bytes at 4 bits, int16 at 8 bits, none with a table.
  std::int64_t zero_bytes = 0;
};

/// n, k and group at least 1; n * k below 2^56.
PanelShape panel_shape(PanelKind kind, std::int64_t n, std::int64_t k, std::int64_t group);

/// Scales as their format has them: all are widened to float32, which is exact, and multiplied
/// there.
struct Scales {
  const void* data = nullptr;
  ElementType type = ElementType::f32;
};

/// A packed weight; borrowed memory, codes aligned to 64 bytes.
struct PanelWeight {
  PanelShape shape;
  const std::uint8_t* codes = nullptr;
  Scales scales;
  const void* zeros = nullptr;          ///< null for table4
  const float* table = nullptr;         ///< [16], for table4
  const std::int32_t* order = nullptr;  ///< [k]: packed input i is x[order[i]]; null: x[i]
};

/// Where the codes of a panel come from. `read` fills codes[i * 16 + j] with the code of packed
/// input first + i, i in [0, count), and output 16 * panel + j; outputs beyond n need no value.
/// [any-thread]
struct CodeSource {
  void (*read)(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
               std::uint8_t* codes);
  const void* self;
};

/// Packs the codes of panels [first, last) of `shape` into `codes`, which points at panel 0. Any
/// thread, panels in parallel; nothing is allocated.
void pack_panels(const PanelShape& shape, const CodeSource& source, std::int64_t first,
                 std::int64_t last, std::uint8_t* codes);

/// Words of 4-bit codes: `read` fills words[s * 16 + j] with the codes of inputs 8 * (first + s) to
/// 8 * (first + s) + 7 and output 16 * panel + j, the first in the lowest bits, for s in [0,
/// count); outputs beyond n need no value. [any-thread]
struct WordSource {
  void (*read)(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
               std::uint32_t* words);
  const void* self;
};

/// Packs 4-bit panels [first, last) from whole words: the group, or k with one group, is a multiple
/// of 8. Several times as fast as pack_panels. Any thread; nothing is allocated.
void pack_words(const PanelShape& shape, const WordSource& source, std::int64_t first,
                std::int64_t last, std::uint8_t* codes);

/// The words of steps [first, first + count) of one panel again: words[s * 16 + j].
void unpack_words(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panel,
                  std::int64_t first, std::int64_t count, std::uint32_t* words);

/// Codes of one panel again: codes[i * 16 + j] of packed input first + i, i in [0, count), and
/// output 16 * panel + j. Any thread; nothing is allocated.
void unpack_codes(const PanelShape& shape, const std::uint8_t* packed, std::int64_t panel,
                  std::int64_t first, std::int64_t count, std::uint8_t* codes);

/// The code of packed input `k` and output `n`, for tests.
std::uint8_t code_at(const PanelShape& shape, const std::uint8_t* codes, std::int64_t n,
                     std::int64_t k);

}  // namespace graft::kernels
