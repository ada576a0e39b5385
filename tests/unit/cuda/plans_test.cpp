// How products are launched is planned on the host: no device is needed.
#include <doctest/doctest.h>

#include <initializer_list>

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
