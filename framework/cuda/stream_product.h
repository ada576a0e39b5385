#pragma once

#include <span>
#include <vector>

#include "cuda/product.h"
#include "cuda/work_split.h"

// Products with few rows: every warp streams tiles of the weight through a ring of its own in
// shared memory and multiplies with mma.m16n8k16, the weight on the left, so that 8 rows of x cost
// no more than one. The warps of a block take steps of inputs in turn. sm_80 and later.

namespace graft::cuda {

/// How a product is launched.
struct StreamPlan {
  int tiles_high = 4;  ///< tiles of 16 outputs that a warp works on at a time: 1, 2 or 4
  int row_tiles = 1;   ///< tiles of 8 rows of x: 1, 2 or 4
  int warps = 8;
  WorkSplit split;
  std::size_t shared_bytes = 0;
  bool early = false;
};

struct DeviceLimits {
  int processors = 0;
  std::size_t shared_bytes = 0;  ///< that a block may have
  bool early_start = false;      ///< whether a kernel may start while the one before it ends
};

/// For m from 1 to 32; of so many weights with at most m rows each, whose tiles are numbered
/// through.
StreamPlan plan_stream(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                       int segments = 1);
/// With this many tiles a warp; blocks share tiles when there are more tiles than processors, or
/// `split`.
StreamPlan plan_stream(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                       int tiles_high, bool split, int segments = 1);

inline constexpr int kMostStreamRows = 32;
/// Floats of partial sums a range, and flags.
inline constexpr std::size_t kStreamPartial = 64 * kMostStreamRows;

cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& args, cudaStream_t stream);

/// Segments of a launch: they are parameters of the kernel, of which there are 4096 bytes.
inline constexpr int kMostSegments = 120;

/// One launch of a grouped product: its segments in order, and the most rows of one.
struct SegmentLaunch {
  std::vector<ProductSegment> segments;  ///< of 1 to 32 rows
  std::int64_t m = 0;
};
/// The launches of a product: segments with more than 32 rows in several pieces, those without rows
/// left out.
std::vector<SegmentLaunch> launches_of(const FragmentShape& shape,
                                       std::span<const ProductSegment> segments);

/// One launch. `all` as multiply_grouped() takes it, the plan for as many segments.
cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& all,
                            std::span<const ProductSegment> segments, cudaStream_t stream);

}  // namespace graft::cuda
