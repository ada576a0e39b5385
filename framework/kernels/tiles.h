#pragma once

#include "kernels/activations.h"
#include "kernels/panels.h"

namespace graft::kernels {

/// A tile of rows times some panels of one weight, as every level's kernels take it.
struct TileArgs {
  const PanelShape* shape;
  Act act;
  const std::uint8_t* codes;  ///< of the first panel, and so are scales and zeros
  Scales scales;
  const void* zeros;
  const float* table;              ///< [16], table4 with bf16 and f32
  const std::uint8_t* table_high;  ///< [16], table4 with a15 and a8: T >> 8, plus 128
  const std::uint8_t* table_low;   ///< [16]: T - 256 * (T >> 8), plus 128
  std::int64_t panels;             ///< at most kTilePanels
  std::int64_t rows;               ///< at most tile_rows()
  const std::uint8_t* x;           ///< PreparedRows of the tile
  const float* x_scales;
  const std::int32_t* x_sums;
  const float* x_float_sums;
  float* out;  ///< [rows][out_stride], 16 columns a panel
  std::int64_t out_stride;
};

inline constexpr std::int64_t kTilePanels = 2;

/// Every level gives the same bits in a15 and a8. In f32 the levels differ in the order of sums
/// inside a block, in bf16 also in what the processor's dot rounds.
using TileFn = void (*)(const TileArgs&);
void run_tile_scalar(const TileArgs& args);  ///< the oracle
#if defined(__x86_64__)
void run_tile_avx2(const TileArgs& args);
void run_tile_avx512(const TileArgs& args);           ///< a15, a8, f32
void run_tile_bf16_avx512bf16(const TileArgs& args);  ///< bf16
#endif

/// What table4 kernels with integer planes use: table[i] is about factor * (256 * high + low), each
/// stored plus 128. False when the table holds no finite non-zero value.
bool split_table(const float* table, std::uint8_t* high, std::uint8_t* low, float* factor);

}  // namespace graft::kernels
