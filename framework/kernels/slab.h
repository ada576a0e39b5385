#pragma once

#include "kernels/panels.h"

// Many rows in bfloat16: a stretch of two panels is decoded once, scale * (code - zero) or
// scale * table[code] rounded to bfloat16, and stays in the cache while all rows pass.

namespace graft::kernels {

inline constexpr std::int64_t kSlabSteps = 256;  ///< of a stretch: 2048 inputs
inline constexpr std::int64_t kSlabRows = 12;    ///< the most rows of a tile
inline constexpr std::int64_t kSlabBytes = kSlabSteps * 4 * 2 * 64;

struct SlabArgs {
  const PanelShape* shape;
  const std::uint8_t* codes;  ///< of the first panel, and so are scales and zeros
  Scales scales;
  const void* zeros;
  const float* table;
  std::int64_t panels;                 ///< 1 or 2
  std::int64_t first_step, last_step;  ///< of the stretch
  std::uint8_t* slab;                  ///< [step][4 pairs of inputs][panel][16 outputs][2] bfloat16
};

#if defined(__x86_64__)
void decode_slab_avx512bf16(const SlabArgs& args);
/// out [rows][out_stride] = x times the slab, added to what is there when first_step > 0. `x`: the
/// prepared bf16 rows of the tile, from step 0 on.
void multiply_slab_avx512bf16(const SlabArgs& args, const std::uint8_t* x, std::int64_t rows,
                              float* out, std::int64_t out_stride);
#endif

}  // namespace graft::kernels
