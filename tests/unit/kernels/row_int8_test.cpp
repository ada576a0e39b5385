#include "kernels/row_int8.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "random_weight.h"
#include "thread_pool.h"

using namespace graft;
using namespace graft::kernels;
using graft::tests::RandomWeight;
using graft::tests::ThreadPool;

namespace {

constexpr float kGuard = 777.0F;

std::vector<float> run(CpuLevel level, const RandomWeight& weight, const std::vector<float>& scales,
                       const std::vector<float>& x, std::int64_t m, float threshold,
                       const graft_pool& pool) {
  const std::int64_t n = weight.packed.shape.n, k = weight.packed.shape.k;
  std::vector<float> y(static_cast<std::size_t>(m * n + 2), kGuard);
  RowInt8Args args;
  args.shape = &weight.packed.shape;
  args.codes = weight.packed.codes;
  args.scales = scales.data();
  args.threshold = threshold;
  args.m = m;
  args.x = x.data();
  args.x_stride = k;
  args.y = y.data() + 1;
  args.y_stride = n;
  multiply_rows_int8_at(level, args, pool);
  CHECK(y.front() == kGuard);
  CHECK(y.back() == kGuard);
  return {y.begin() + 1, y.end() - 1};
}

std::vector<float> rows(std::int64_t m, std::int64_t k, bool outliers) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(m * k));
  for (auto& value : x) value = normal(random) * (outliers && random() % 97 == 0 ? 9.0F : 1.0F);
  return x;
}

struct Size {
  std::int64_t n, k;
};
constexpr Size kSizes[] = {{1, 1}, {1, 70}, {17, 8}, {40, 333}, {96, 512}};

}  // namespace

TEST_CASE("LLM.int8 follows its definition") {
  for (const auto& size : kSizes)
    for (const float threshold : {0.0F, 6.0F}) {
      const RandomWeight weight(PanelKind::int8, size.n, size.k, size.k);
      std::vector<float> scales;
      for (std::int64_t o = 0; o < size.n; ++o)
        scales.push_back(0.5F + static_cast<float>(o) / 64.0F);
      const std::int64_t m = 3;
      const auto x = rows(m, size.k, true);
      const auto y = run(CpuLevel::scalar, weight, scales, x, m, threshold, ThreadPool<1>::table);
      const auto k = static_cast<std::size_t>(size.k);
      std::vector<bool> out_of_int8(k);
      std::vector<float> half;
      for (const float value : x) half.push_back(static_cast<float>(static_cast<_Float16>(value)));
      for (std::size_t i = 0; i < half.size(); ++i)
        if (threshold > 0 && std::abs(half[i]) >= threshold) out_of_int8[i % k] = true;
      for (std::size_t r = 0; r < 3; ++r) {
        float absmax = 0;
        for (std::size_t i = 0; i < k; ++i)
          if (!(threshold > 0 && std::abs(half[r * k + i]) >= threshold))
            absmax = std::max(absmax, std::abs(half[r * k + i]));
        for (std::size_t o = 0; o < static_cast<std::size_t>(size.n); ++o) {
          double sum = 0, exact = 0;
          for (std::size_t i = 0; i < k; ++i) {
            const int code = weight.codes[o * k + i] - 128;
            if (out_of_int8[i])
              exact += static_cast<double>(x[r * k + i]) *
                       static_cast<double>(static_cast<float>(code) * scales[o] / 127.0F);
            else
              sum += code * static_cast<double>(
                                std::nearbyint(half[r * k + i] * (1.0F / absmax * 127.0F)));
          }
          const double expected = (absmax > 0 ? sum * static_cast<double>(absmax) *
                                                    static_cast<double>(scales[o]) / 16129.0
                                              : 0) +
                                  exact;
          CHECK(static_cast<double>(y[r * static_cast<std::size_t>(size.n) + o]) ==
                doctest::Approx(expected).epsilon(1e-3));
        }
      }
    }
}

TEST_CASE("LLM.int8 gives the oracle's bits at every level and with any threads") {
  for (const auto& size : kSizes) {
    const RandomWeight weight(PanelKind::int8, size.n, size.k, size.k);
    std::vector<float> scales(static_cast<std::size_t>(size.n), 0.75F);
    for (const std::int64_t m : {1, 2, 5, 13, 17, 130}) {
      if (m == 130 && size.k > 400) continue;
      const auto x = rows(m, size.k, true);
      const auto oracle = run(CpuLevel::scalar, weight, scales, x, m, 6, ThreadPool<1>::table);
      for (const auto level : available_cpu_levels()) {
        CHECK(run(level, weight, scales, x, m, 6, ThreadPool<1>::table) == oracle);
        CHECK(run(level, weight, scales, x, m, 6, ThreadPool<3>::table) == oracle);
      }
    }
  }
}

TEST_CASE("sums of the longest rows that int8 allows are exact") {
  const std::int64_t k = (1 << 17) - 8;
  RandomWeight weight(PanelKind::int8, 2, k, k);
  for (std::int64_t i = 0; i < weight.packed.shape.code_bytes; ++i) weight.memory.get()[i] = 255;
  const std::vector<float> scales(2, 1.0F), x(static_cast<std::size_t>(k), 1.0F);
  for (const auto level : available_cpu_levels())
    for (const float y : run(level, weight, scales, x, 1, 6, ThreadPool<1>::table))
      CHECK(y == doctest::Approx(static_cast<double>(k)));
}

TEST_CASE("NaN makes its own row NaN, and infinity leaves int8 as an outlier") {
  const RandomWeight weight(PanelKind::int8, 20, 64, 64);
  const std::vector<float> scales(20, 1.0F);
  auto x = rows(2, 64, false);
  x[70] = std::numeric_limits<float>::quiet_NaN();
  for (const auto level : available_cpu_levels()) {
    const auto y = run(level, weight, scales, x, 2, 6, ThreadPool<1>::table);
    for (std::size_t o = 0; o < 20; ++o) {
      CHECK(std::isfinite(y[o]));
      CHECK(std::isnan(y[20 + o]));
    }
  }
  x[70] = std::numeric_limits<float>::infinity();
  for (const auto level : available_cpu_levels()) {
    const auto y = run(level, weight, scales, x, 2, 6, ThreadPool<1>::table);
    for (std::size_t o = 0; o < 20; ++o) CHECK(!std::isfinite(y[20 + o]));
    const auto without = run(level, weight, scales, x, 2, 0, ThreadPool<1>::table);
    for (std::size_t o = 0; o < 20; ++o) CHECK(std::isnan(without[20 + o]));
  }
}
