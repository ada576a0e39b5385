// How products are launched is planned on the host: no device is needed.
#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "cuda/stream_product.h"
#include "cuda/wgmma_product.h"

using namespace graft::cuda;

namespace {

constexpr DeviceLimits kDevices[] = {{108, 166912, false},  // sm_80
                                     {84, 101376, false},   // sm_86, sm_89
                                     {132, 232448, true},   // sm_90
                                     {2, 101376, false}};

template <class Check>
void each_product(CodeKind kind, std::int64_t most_rows, const Check& check) {
  for (const auto& device : kDevices)
    for (const std::int64_t n : {8, 64, 1024, 4096, 28672})
      for (const std::int64_t k : {8, 128, 4096, 28672})
        for (const std::int64_t group : {32, 64, 128, 1 << 20})
          for (const std::int64_t m : {1, 8, 9, 16, 17, 32, 33, 100, 128, 129, 4096}) {
            if (m > most_rows) continue;
            CAPTURE(device.processors);
            CAPTURE(n);
            CAPTURE(k);
            CAPTURE(group);
            CAPTURE(m);
            check(fragment_shape(kind, n, k, group), m, device);
          }
}

/// That every block has a place on the device at once, flags and partial sums included.
void check_split(const WorkSplit& split, const DeviceLimits& device) {
  REQUIRE(split.ranges >= 1);
  REQUIRE(split.ranges <= device.processors);
  REQUIRE(split.steps >= 1);
  REQUIRE(split.waves >= 0);
  REQUIRE(split.shared_tiles() >= 0);
}

}  // namespace

TEST_CASE("a streamed product fits the device and covers the result") {
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    each_product(kind, kMostStreamRows, [](const FragmentShape& shape, std::int64_t m,
                                           const DeviceLimits& device) {
      const auto plan = plan_stream(shape, m, device);
      check_split(plan.split, device);
      REQUIRE(plan.shared_bytes <= device.shared_bytes);
      REQUIRE(plan.warps >= 1);
      REQUIRE(plan.row_tiles * 8 >= m);
      const int outputs = 16 * plan.tiles_high;
      REQUIRE(static_cast<std::int64_t>(plan.split.tiles) * outputs >= shape.n);
      REQUIRE(plan.split.steps == shape.steps);
      REQUIRE(static_cast<std::size_t>(outputs * plan.row_tiles * 8) <= kStreamPartial);
    });
}

TEST_CASE("a product with wgmma fits the device and covers the result") {
  each_product(CodeKind::int4, 1 << 20, [](const FragmentShape& shape, std::int64_t m,
                                           const DeviceLimits& device) {
    if (device.shared_bytes < 200000) return;  // no wgmma
    const auto plan = plan_wgmma(shape, m, device);
    check_split(plan.split, device);
    REQUIRE(plan.stages >= 2);
    REQUIRE(plan.shared_bytes <= device.shared_bytes);
    REQUIRE(static_cast<std::int64_t>(plan.row_tiles) * plan.rows >= m);
    REQUIRE(plan.split.tiles % plan.row_tiles == 0);
    REQUIRE(plan.split.tiles / plan.row_tiles * plan.bands >= shape.bands);
    REQUIRE(plan.split.steps * 2 == shape.steps);
    REQUIRE(static_cast<std::size_t>(plan.bands * 64 * plan.rows) <= kWgmmaPartial);
    if (plan.split.parts > 0) {
      REQUIRE(plan.split.ranges == plan.split.tiles * plan.split.parts);
      REQUIRE(plan.split.parts <= plan.split.steps);
      REQUIRE(plan.split.waves == 0);
      // Sums of a tile meet where the ring was.
      REQUIRE(static_cast<std::size_t>(plan.bands * 64 * plan.rows * 4) <= plan.shared_bytes);
    }
  });
}

TEST_CASE("the launches of a grouped product have every row of every segment once") {
  const auto shape = fragment_shape(CodeKind::int4, 768, 2048, 128);
  using Rows = std::vector<std::int64_t>;
  for (const auto& rows : {Rows{}, Rows{0, 0}, Rows{1}, Rows{5, 0, 33, 64, 1}, Rows(8, 1),
                           Rows(120, 7), Rows(121, 32), Rows(400, 3), Rows{10000}}) {
    CAPTURE(rows.size());
    std::vector<int> marks(rows.size());  // whose codes: an address for each segment
    std::vector<ProductSegment> segments;
    std::int64_t first = 3, pieces = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      segments.push_back({&marks[i], nullptr, nullptr, first, rows[i]});
      first += rows[i];
      pieces += (rows[i] + kMostStreamRows - 1) / kMostStreamRows;
    }
    std::vector<std::pair<const void*, std::int64_t>> expected, found;
    for (const auto& s : segments)
      for (std::int64_t row = s.first; row < s.first + s.rows; ++row)
        expected.emplace_back(s.codes, row);
    const auto launches = launches_of(shape, segments);
    REQUIRE(static_cast<std::int64_t>(launches.size()) ==
            (pieces + kMostSegments - 1) / kMostSegments);
    for (const auto& launch : launches) {
      REQUIRE(launch.segments.size() >= 1);
      REQUIRE(launch.segments.size() <= static_cast<std::size_t>(kMostSegments));
      std::int64_t most = 0;
      for (const auto& s : launch.segments) {
        REQUIRE(s.rows >= 1);
        REQUIRE(s.rows <= kMostStreamRows);
        most = std::max(most, s.rows);
        for (std::int64_t row = s.first; row < s.first + s.rows; ++row)
          found.emplace_back(s.codes, row);
      }
      REQUIRE(launch.m == most);
    }
    REQUIRE(found == expected);
  }
}

TEST_CASE("a launch takes no more segments than there are numbers for their units of work") {
  const auto shape = fragment_shape(CodeKind::int4, 1 << 20, 1 << 17, 128);
  const std::vector<ProductSegment> segments(40, ProductSegment{nullptr, nullptr, nullptr, 0, 1});
  std::size_t count = 0;
  for (const auto& launch : launches_of(shape, segments)) {
    count += launch.segments.size();
    REQUIRE(static_cast<std::int64_t>(launch.segments.size()) * shape.bands * 4 * shape.steps <=
            INT32_MAX);
  }
  REQUIRE(count == segments.size());
}

TEST_CASE("blocks do every step of every segment's tiles once, and wait for earlier blocks only") {
  for (const auto& device : kDevices)
    for (const auto& [n, k] : {std::pair{768, 2048}, {2048, 768}, {72, 136}, {4096, 1024}})
      for (const int segments : {1, 2, 8, 64, kMostSegments})
        for (const std::int64_t m : {1, 9, 32}) {
          const auto shape = fragment_shape(CodeKind::int4, n, k, 128);
          const auto plan = plan_stream(shape, m, device, segments);
          CAPTURE(device.processors);
          CAPTURE(n);
          CAPTURE(segments);
          CAPTURE(m);
          REQUIRE(plan.shared_bytes <= device.shared_bytes);
          // Those that share tiles all have a place at once, with their partial sums.
          if (plan.split.ranges != plan.split.tiles)
            REQUIRE(plan.split.ranges <= device.processors);
          REQUIRE(plan.split.tiles % segments == 0);
          const int each = plan.split.tiles / segments, outputs = 16 * plan.tiles_high;
          REQUIRE(each * outputs >= n);
          REQUIRE((each - 1) * outputs < n);
          std::vector<int> done(static_cast<std::size_t>(plan.split.tiles * plan.split.steps));
          std::vector<int> block_of(static_cast<std::size_t>(plan.split.ranges));
          for (int block = 0; block < plan.split.ranges; ++block)
            block_of[static_cast<std::size_t>(plan.split.range_of_block(block))] = block;
          bool waits_for_later = false;
          for (int range = 0; range < plan.split.ranges; ++range)
            for (WorkOfRange work(plan.split, range); work.next();) {
              for (int step = work.begin; step < work.end; ++step)
                ++done[static_cast<std::size_t>(work.tile * plan.split.steps + step)];
              if (work.begin != 0) continue;
              for (int other = range + 1; other < work.end_of_parts(); ++other)
                waits_for_later |= block_of[static_cast<std::size_t>(other)] >=
                                   block_of[static_cast<std::size_t>(range)];
            }
          REQUIRE(done == std::vector<int>(done.size(), 1));
          REQUIRE_FALSE(waits_for_later);
          REQUIRE(plan.split.steps == shape.steps);
        }
}
