#pragma once

#include <cstdint>

#include "kernels/panels.h"

// What becomes of x before a kernel multiplies packed weights with it.

namespace graft::kernels {

/// What the product is computed in.
enum class Act {
  /// x as s * (256 h + l), two int8 planes and one s a block: 15 bits and a sign. Sums are exact
  /// integers, so a result depends neither on the number of threads nor on other rows.
  a15,
  a8,    ///< x as s * h, one int8 plane a block; independent of threads and rows as well
  bf16,  ///< x rounded to bfloat16, sums in float32
  f32,   ///< float32 throughout
};

/// Rows of x ready for a kernel. Rows are cut into tiles of at most tile_rows() rows; memory of a
/// tile that starts at row r begins r rows' worth into each array, and inside a tile rows
/// interleave, step by step, so that a kernel reads one stream:
///   a15  [step][row][h of inputs 0..7, l of inputs 0..7] bytes
///   a8   [step][row][h of inputs 0..7]
///   bf16 [step][row][inputs 0 2 4 6 1 3 5 7], f32 [step][row][inputs 0 4 1 5 2 6 3 7]: the orders
///        in which shifts of a 4-bit line lay codes bare; with 8 bits 0..7 in both
///   scales [block][row], sums [block][row][2]: the negated sums of h and of l (int8 planes)
///   float sums [block][row] in bf16 and f32
struct PreparedRows {
  std::int64_t m = 0;
  std::uint8_t* values = nullptr;
  float* scales = nullptr;       ///< a15 and a8
  std::int32_t* sums = nullptr;  ///< a15 and a8
  float* float_sums = nullptr;   ///< bf16 and f32
};

/// Bytes of one row in PreparedRows::values.
std::int64_t row_bytes(const PanelShape& shape, Act act);
/// The most rows that a kernel of this kind holds in registers at a time; the same at every level.
std::int64_t tile_rows(PanelKind kind, Act act);

/// One tile of a cut of `m` rows: tiles are as even as can be.
struct RowTile {
  std::int64_t first, rows;
};
RowTile row_tile(std::int64_t m, std::int64_t most, std::int64_t index);
std::int64_t row_tile_count(std::int64_t m, std::int64_t most);

/// Everything that preparing one row needs.
struct PrepareRow {
  const PanelShape* shape;
  Act act;
  ElementType type;
  const void* x;              ///< [k] elements of `type`
  const std::int32_t* order;  ///< or null
  float factor;               ///< multiplied into the scales (table kernels)
  std::int64_t rows;          ///< of the row's tile
  std::uint8_t* values;       ///< of the row's first step
  float* scales;              ///< of the row's first block
  std::int32_t* sums;
  float* float_sums;
  float* scratch;  ///< [steps * 8] floats, aligned to 64 bytes
};
using PrepareRowFn = void (*)(const PrepareRow&);
void prepare_row_scalar(const PrepareRow& args);
#if defined(__x86_64__)
void prepare_row_avx2(const PrepareRow& args);  ///< at level avx512 too
#endif

}  // namespace graft::kernels
