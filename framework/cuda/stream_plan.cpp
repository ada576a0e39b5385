#include "cuda/stream_plan.h"

#include <algorithm>

namespace graft::cuda {

StreamPlan plan_stream(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                       int tiles_high, bool split, int segments) {
  StreamPlan plan;
  plan.tiles_high = tiles_high;
  plan.row_tiles = m <= 8 ? 1 : m <= 16 ? 2 : 4;
  plan.early = limits.early_start;
  plan.split.tiles =
      segments * static_cast<int>((shape.n + 16 * tiles_high - 1) / (16 * tiles_high));
  plan.split.steps = static_cast<int>(shape.steps);
  const bool fine = shape.group_shift == 5;
  const auto bytes = [&](int warps) {
    const bool table = shape.kind == CodeKind::table4;
    const int sums = tiles_high * 2 * 32 * static_cast<int>(sizeof(float2));
    return static_cast<std::size_t>(
        (table ? kTableBytes : 0) +
        warps * (stages_of(plan.row_tiles) * stage_of(tiles_high, plan.row_tiles, fine) +
                 meetings_of(plan.row_tiles) * sums));
  };
  plan.warps = most_warps(plan.row_tiles, fine);
  while (plan.warps > 1 && bytes(plan.warps) > limits.shared_bytes) --plan.warps;
  plan.shared_bytes = bytes(plan.warps);
  plan.split.ranges = plan.split.tiles;
  if (split || plan.split.tiles > limits.processors) {
    const int units = plan.split.units();
    plan.split.ranges =
        std::max(1, std::min(limits.processors, units / std::min(units, plan.warps)));
  }
  return plan;
}

StreamPlan plan_stream(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                       int segments) {
  StreamPlan best;
  double best_time = 0;
  for (const int high : {4, 2, 1})
    for (const bool split : {false, true}) {
      if ((high == 4 && m > 16) || (high == 1 && m > 8)) continue;
      const auto plan = plan_stream(shape, m, limits, high, split, segments);
      // Steps that the slowest warp takes, in tiles; blocks that meet lose as much as twelve of
      // them take (both measured on an H200).
      const int most = (plan.split.units() + plan.split.ranges - 1) / plan.split.ranges;
      const double time = (most + plan.warps - 1) / plan.warps * (high + 0.5) +
                          (plan.split.ranges == plan.split.tiles ? 0 : 12);
      if (best.split.tiles == 0 || time < best_time) {
        best = plan;
        best_time = time;
      }
    }
  return best;
}

std::vector<SegmentLaunch> launches_of(const FragmentShape& shape,
                                       std::span<const ProductSegment> segments) {
  // Units of work are counted in 31 bits.
  const std::int64_t most =
      std::clamp<std::int64_t>(INT32_MAX / (shape.bands * 4 * shape.steps), 1, kMostSegments);
  std::vector<ProductSegment> pieces;
  for (const auto& segment : segments)
    for (std::int64_t done = 0; done < segment.rows; done += kMostStreamRows) {
      pieces.push_back(segment);
      pieces.back().first += done;
      pieces.back().rows = std::min<std::int64_t>(kMostStreamRows, segment.rows - done);
    }
  const auto count = static_cast<std::int64_t>(pieces.size()), launches = (count + most - 1) / most;
  std::vector<SegmentLaunch> out(static_cast<std::size_t>(launches));
  for (std::int64_t i = 0; i < launches; ++i) {
    auto& launch = out[static_cast<std::size_t>(i)];
    launch.segments.assign(pieces.begin() + count * i / launches,
                           pieces.begin() + count * (i + 1) / launches);
    for (const auto& segment : launch.segments) launch.m = std::max(launch.m, segment.rows);
  }
  return out;
}

}  // namespace graft::cuda
