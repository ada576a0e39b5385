#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/product.h"
#include "cuda/work_split.h"

// How products with few rows (stream_product.h) are launched. Plain arithmetic, so that the host
// can check it without a device.

namespace graft::cuda {

/// Stages of a warp's ring, and places where warps' sums meet, by what there is room for.
GRAFT_HOST_DEVICE constexpr int stages_of(int row_tiles) { return row_tiles == 1 ? 4 : 3; }
GRAFT_HOST_DEVICE constexpr int meetings_of(int row_tiles) { return row_tiles == 1 ? 1 : 2; }

inline constexpr int kTableBytes = 256 * 128;  ///< every pair of codes, once for each lane's bank

/// Bytes of a stage of a warp's ring; kHigh tiles of 16 outputs, kFine: groups of 32 inputs.
GRAFT_HOST_DEVICE constexpr int codes_of(int high) { return high * static_cast<int>(kTileBytes); }
GRAFT_HOST_DEVICE constexpr int words_of(int high, bool fine) {
  return high * 64 * (fine ? 2 : 1);
}
/// With 64 inputs of x, in tiles of 8 rows.
GRAFT_HOST_DEVICE constexpr int stage_of(int high, int row_tiles, bool fine) {
  return codes_of(high) + words_of(high, fine) + row_tiles * 1024;
}
/// Warps of a block that there are registers for.
GRAFT_HOST_DEVICE constexpr int most_warps(int row_tiles, bool fine) {
  return row_tiles == 4 || (row_tiles == 2 && fine) ? 8 : 12;
}

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

}  // namespace graft::cuda
