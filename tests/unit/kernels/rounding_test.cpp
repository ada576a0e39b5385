#include "kernels/rounding.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

using namespace graft::kernels;

namespace {

constexpr std::int64_t kRows = kStripRows;

template <class T>
class Aligned {
 public:
  explicit Aligned(std::int64_t count)
      : memory_(static_cast<T*>(::operator new[](static_cast<std::size_t>(count) * sizeof(T),
                                                 std::align_val_t(64)))),
        size_(static_cast<std::size_t>(count)) {
    std::fill_n(memory_.get(), size_, T{});
  }
  T* get() const { return memory_.get(); }
  std::vector<T> values() const { return {get(), get() + size_}; }

 private:
  struct Free {
    void operator()(T* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t size_;
};

/// H of correlated inputs, and F lower triangular with F^T F = H, in double.
struct Problem {
  std::int64_t k;
  std::vector<double> h, f;
  std::vector<float> factor, cost, hessian, diagonal;
  std::vector<std::int32_t> begin;

  Problem(std::int64_t inputs, std::vector<std::int32_t> groups) : k(inputs), begin(groups) {
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    const std::int64_t samples = 4 * k;
    std::vector<double> x(static_cast<std::size_t>(samples * k));
    for (std::int64_t s = 0; s < samples; ++s) {
      double before = 0;
      for (std::int64_t j = 0; j < k; ++j)
        x[s * k + j] = before = 0.7 * before + normal(random) * static_cast<double>(1 + j % 5);
    }
    h.assign(static_cast<std::size_t>(k * k), 0);
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t j = 0; j < k; ++j) {
        for (std::int64_t s = 0; s < samples; ++s) h[i * k + j] += x[s * k + i] * x[s * k + j];
        h[i * k + j] = h[i * k + j] / static_cast<double>(samples) + (i == j ? 0.05 : 0);
      }
    // Cholesky from the last input back: F^T F = H.
    f.assign(h.size(), 0);
    for (std::int64_t i = k - 1; i >= 0; --i)
      for (std::int64_t j = i; j >= 0; --j) {
        double sum = h[i * k + j];
        for (std::int64_t m = i + 1; m < k; ++m) sum -= f[m * k + i] * f[m * k + j];
        f[i * k + j] = i == j ? std::sqrt(sum) : sum / f[i * k + i];
      }
    for (std::int64_t i = 0; i < k; ++i) {
      cost.push_back(static_cast<float>(f[i * k + i] * f[i * k + i]));
      diagonal.push_back(static_cast<float>(h[i * k + i]));
      for (std::int64_t j = 0; j < k; ++j) {
        factor.push_back(static_cast<float>(f[i * k + j] / f[i * k + i]));
        hessian.push_back(static_cast<float>(h[i * k + j]));
      }
    }
  }

  std::int64_t groups() const { return static_cast<std::int64_t>(begin.size()) - 1; }
  RoundingProblem view(int sweeps, bool thorough) const {
    RoundingProblem out;
    out.inputs = k;
    out.groups = groups();
    out.group_begin = begin.data();
    out.factor = factor.data();
    out.cost = cost.data();
    out.hessian = hessian.data();
    out.diagonal = diagonal.data();
    out.sweeps = sweeps;
    out.thorough = thorough;
    return out;
  }
  /// d H d^T of one row.
  double loss(const float* deviation, std::int64_t row) const {
    double sum = 0;
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t j = 0; j < k; ++j)
        sum += h[i * k + j] * deviation[i * kRows + row] * deviation[j * kRows + row];
    return sum;
  }
};

struct Result {
  std::vector<float> deviation, scales;
  std::vector<std::uint8_t> codes, zeros;
};

std::vector<float> random_weights(std::int64_t k) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<float> w(static_cast<std::size_t>(k * kRows));
  for (auto& value : w) value = normal(random);
  return w;
}

Result run(CpuLevel level, const RoundingProblem& problem, const RoundingGrid& grid,
           const std::vector<float>& weights, const std::vector<float>& given = {}) {
  const std::int64_t k = problem.inputs, g = problem.groups;
  Aligned<float> w(k * kRows), d(k * kRows), scales(g * kRows), scratch(2 * k * kRows);
  Aligned<std::uint8_t> codes(k * kRows), zeros(g * kRows);
  std::copy(weights.begin(), weights.end(), w.get());
  std::copy(given.begin(), given.end(), scales.get());
  if (!given.empty())
    std::fill_n(zeros.get(), g * kRows, static_cast<std::uint8_t>((grid.top + 1) / 2));
  round_strip(level)(problem, grid,
                     {w.get(), d.get(), codes.get(), scales.get(), zeros.get(), scratch.get()});
  return {d.values(), scales.values(), codes.values(), zeros.values()};
}

constexpr std::array<float, 16> kLevels = {-1.0F,  -0.7F, -0.52F, -0.39F, -0.28F, -0.18F,
                                           -0.09F, 0.0F,  0.08F,  0.16F,  0.25F,  0.34F,
                                           0.44F,  0.56F, 0.72F,  1.0F};

RoundingGrid grid_of(const char* kind) {
  RoundingGrid grid;
  const std::string word = kind;
  if (word == "asymmetric") grid.own_zeros = true;
  if (word == "3 bits") grid.top = 7;
  if (word == "table") {
    grid.levels = kLevels.data();
    grid.level_count = 16;
    grid.scale_type = ScaleType::float32;
  }
  return grid;
}

constexpr const char* kGrids[] = {"symmetric", "asymmetric", "3 bits", "table"};

}  // namespace

TEST_CASE("every level rounds to the same bits as the scalar kernel") {
  const Problem p(75, {0, 32, 64, 75});
  const auto w = random_weights(p.k);
  for (const char* kind : kGrids)
    for (const int sweeps : {0, 2})
      for (const bool thorough : {false, true}) {
        CAPTURE(kind);
        CAPTURE(sweeps);
        CAPTURE(thorough);
        const auto oracle =
            run(CpuLevel::scalar, p.view(sweeps, thorough), grid_of(kind), w);
        for (const auto level : available_cpu_levels()) {
          const auto found = run(level, p.view(sweeps, thorough), grid_of(kind), w);
          CHECK(found.codes == oracle.codes);
          CHECK(found.scales == oracle.scales);
          CHECK(found.deviation == oracle.deviation);
          if (std::string(kind) != "table") CHECK(found.zeros == oracle.zeros);
        }
      }
}

TEST_CASE("with scales that are given the codes are those of GPTQ") {
  // The textbook's way, in double: round an input, and take its error out of the inputs to come by
  // the inverse of what is left of H.
  const Problem p(48, {0, 16, 32, 48});
  const auto w = random_weights(p.k);
  const std::vector<float> scales(static_cast<std::size_t>(3 * kRows), 0.0075F);
  RoundingGrid grid;
  grid.given_scales = true;
  const auto found = run(CpuLevel::scalar, p.view(0, false), grid, w, scales);
  const std::int64_t k = p.k;
  std::vector<double> inverse(static_cast<std::size_t>(k * k), 0);
  {  // Gauss-Jordan
    auto a = p.h;
    for (std::int64_t i = 0; i < k; ++i) inverse[i * k + i] = 1;
    for (std::int64_t c = 0; c < k; ++c) {
      const double pivot = a[c * k + c];
      for (std::int64_t j = 0; j < k; ++j) a[c * k + j] /= pivot, inverse[c * k + j] /= pivot;
      for (std::int64_t r = 0; r < k; ++r) {
        const double times = a[r * k + c];
        if (r == c || times == 0) continue;
        for (std::int64_t j = 0; j < k; ++j) {
          a[r * k + j] -= times * a[c * k + j];
          inverse[r * k + j] -= times * inverse[c * k + j];
        }
      }
    }
  }
  for (std::int64_t row = 0; row < kRows; ++row) {
    auto left = inverse;
    std::vector<double> now(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < k; ++i) now[i] = w[i * kRows + row];
    for (std::int64_t i = 0; i < k; ++i) {
      const double code = std::clamp(std::nearbyint(now[i] / 0.0075F), -8.0, 7.0);
      REQUIRE(found.codes[i * kRows + row] == static_cast<int>(code) + 8);
      const double error = (now[i] - code * 0.0075F) / left[i * k + i];
      for (std::int64_t j = i + 1; j < k; ++j) now[j] -= error * left[i * k + j];
      for (std::int64_t r = i + 1; r < k; ++r)
        for (std::int64_t c = i + 1; c < k; ++c)
          left[r * k + c] -= left[r * k + i] * left[i * k + c] / left[i * k + i];
    }
  }
}

TEST_CASE("feedback loses less than nearest codes, and sweeps never lose more") {
  const Problem p(96, {0, 32, 64, 96});
  const auto w = random_weights(p.k);
  for (const char* kind : kGrids) {
    CAPTURE(kind);
    RoundingProblem plain = p.view(0, false);
    plain.factor = nullptr;
    const auto nearest = run(CpuLevel::scalar, plain, grid_of(kind), w);
    auto before = run(CpuLevel::scalar, p.view(0, false), grid_of(kind), w);
    double lost_nearest = 0, lost_before = 0;
    for (std::int64_t row = 0; row < kRows; ++row) {
      lost_nearest += p.loss(nearest.deviation.data(), row);
      lost_before += p.loss(before.deviation.data(), row);
    }
    CHECK(lost_before < 0.8 * lost_nearest);
    for (const int sweeps : {1, 2, 4}) {
      CAPTURE(sweeps);
      const auto after = run(CpuLevel::scalar, p.view(sweeps, false), grid_of(kind), w);
      for (std::int64_t row = 0; row < kRows; ++row)
        CHECK(p.loss(after.deviation.data(), row) <=
              p.loss(before.deviation.data(), row) * (1 + 1e-5));
      before = after;
    }
  }
}

TEST_CASE("deviations are those of the codes, scales and zeros that are given back") {
  const Problem p(40, {0, 16, 32, 40});
  const auto w = random_weights(p.k);
  for (const char* kind : kGrids) {
    const auto grid = grid_of(kind);
    const auto found = run(CpuLevel::scalar, p.view(2, true), grid, w);
    for (std::int64_t g = 0; g < 3; ++g)
      for (std::int64_t k = p.begin[g]; k < p.begin[g + 1]; ++k)
        for (std::int64_t r = 0; r < kRows; ++r) {
          const float level = grid.levels ? grid.levels[found.codes[k * kRows + r]]
                                          : static_cast<float>(found.codes[k * kRows + r]) -
                                                static_cast<float>(found.zeros[g * kRows + r]);
          REQUIRE(found.deviation[k * kRows + r] ==
                  w[k * kRows + r] - found.scales[g * kRows + r] * level);
        }
  }
}

TEST_CASE("a row of zeros becomes zeros") {
  const Problem p(32, {0, 16, 32});
  const std::vector<float> w(static_cast<std::size_t>(32 * kRows), 0.0F);
  for (const char* kind : kGrids) {
    const auto found = run(CpuLevel::scalar, p.view(1, true), grid_of(kind), w);
    for (const float d : found.deviation) CHECK(d == 0.0F);
  }
}

TEST_CASE("scales round to half precision and bfloat16 to nearest, ties to even") {
  const auto half = [](float x) { return rounded_scale(x, ScaleType::float16); };
  CHECK(half(1.0F + 0x1p-11F) == 1.0F);
  CHECK(half(1.0F + 3 * 0x1p-11F) == 1.0F + 0x1p-9F);
  CHECK(half(-0.1F) == -0.0999755859375F);
  CHECK(half(3 * 0x1p-25F) == 0x1p-23F);  // subnormal
  CHECK(half(0x1p-26F) == 0.0F);
  CHECK(half(1e6F) == 65504.0F);
  CHECK(rounded_scale(1.0F + 0x1p-8F, ScaleType::bfloat16) == 1.0F);
  CHECK(rounded_scale(1.0F + 3 * 0x1p-8F, ScaleType::bfloat16) == 1.0F + 0x1p-6F);
  CHECK(rounded_scale(0.1F, ScaleType::float32) == 0.1F);
}
