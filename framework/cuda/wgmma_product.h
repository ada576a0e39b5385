#pragma once

#include "cuda/product.h"
#include "cuda/stream_plan.h"

// Products with more rows on devices with wgmma (sm_90): one warp has the copy engine bring weight
// and x into a ring in shared memory; groups of four warps make 16-bit numbers of the codes in
// registers, which wgmma takes as its left operand.

namespace graft::cuda {

struct WgmmaPlan {
  int bands = 4;  ///< of 64 outputs that a block works on at a time, one for each group of warps
  int rows = 32;  ///< of x at a time: 32; with two bands 64, 128 and 256 too
  int stages = 4;
  WorkSplit split;
  int row_tiles = 1;
  std::size_t shared_bytes = 0;
};

/// Rows up to which scales and zero points are applied to sums of groups, not to weights.
inline constexpr int kFewRows = 32;

/// Only int4.
WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits);
/// With these tiles. Each is shared by a cluster of `parts` blocks, a power of two up to 8 (with 32
/// rows at a time, and no more than there are stages), or where it is 0 by whichever blocks.
WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                     int bands, int rows, int parts);

/// Floats of partial sums a range.
inline constexpr std::size_t kWgmmaPartial = 256 * 128;

cudaError_t multiply_wgmma(const WgmmaPlan& plan, const ProductArgs& args, cudaStream_t stream);

}  // namespace graft::cuda
