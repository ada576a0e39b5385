#pragma once

#include "cuda/product.h"
#include "cuda/stream_product.h"

// Products with more rows on devices with wgmma (sm_90): one warp has the copy engine bring weight
// and x into a ring in shared memory; groups of four warps make 16-bit numbers of the codes, scale
// included, in registers, which wgmma takes as its left operand.

namespace graft::cuda {

struct WgmmaPlan {
  int bands = 4;  ///< of 64 outputs that a block works on at a time, one for each group of warps
  int rows = 32;  ///< of x at a time: 32; with two bands 64, 128 and 256 too
  int stages = 4;
  WorkSplit split;
  int row_tiles = 1;
  std::size_t shared_bytes = 0;
};

/// Only int4.
WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits);
/// With these tiles.
WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                     int bands, int rows);

/// Floats of partial sums a range.
inline constexpr std::size_t kWgmmaPartial = 256 * 128;

cudaError_t multiply_wgmma(const WgmmaPlan& plan, const ProductArgs& args, cudaStream_t stream);

}  // namespace graft::cuda
