#include "cuda/stream_product.h"

#include <doctest/doctest.h>

#include <cmath>

#include "weights.h"

using namespace graft;
using namespace graft::cuda;
using namespace graft::test;

namespace {

constexpr DeviceLimits kLimits{emulated::kProcessors, emulated::kMostSharedBytes, true};

/// Instances of the kernel: tiles high, and numbers of rows for each number of row tiles.
struct Instance {
  int high;
  std::int64_t rows[2];
};
constexpr Instance kInstances[] = {{1, {1, 8}},  {2, {3, 8}},   {4, {1, 7}},
                                   {2, {9, 16}}, {4, {13, 16}}, {2, {17, 32}}};

template <class T>
struct Product {
  Product(const Weight& weight, std::int64_t m, bool with_bias, std::mt19937& random)
      : weight(weight), m(m) {
    std::normal_distribution<float> normal;
    x.resize(static_cast<std::size_t>(m * x_stride()));
    for (auto& value : x) value = rounded<T>(normal(random));
    if (with_bias)
      for (std::int64_t i = 0; i < weight.shape.n; ++i) bias.push_back(normal(random));
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t i = 0; i < weight.shape.n; ++i) {
        double sum = with_bias ? bias[static_cast<std::size_t>(i)] : 0;
        for (std::int64_t j = 0; j < weight.shape.k; ++j) {
          const auto at = static_cast<std::size_t>(i * weight.shape.k + j);
          sum += static_cast<double>(weight.levels[at]) * weight.scales[at] *
                 widened(x[static_cast<std::size_t>(row * x_stride() + j)]);
        }
        expected.push_back(sum);
      }
  }

  std::int64_t x_stride() const { return weight.shape.k + 8; }
  std::int64_t y_stride() const { return weight.shape.n + 6; }

  ProductArgs args(std::vector<T>& y) {
    y.assign(static_cast<std::size_t>(m * y_stride() + 8), rounded<T>(NAN));
    return {weight.view(),
            m,
            x.data(),
            x_stride(),
            y.data() + 4,
            y_stride(),
            bias.empty() ? nullptr : bias.data(),
            workspace.data()};
  }
  std::vector<T> by_plan(const StreamPlan& plan) {
    std::vector<T> y;
    CHECK(multiply_stream(plan, args(y), nullptr) == cudaSuccess);
    return y;
  }

  /// |y - expected| / |expected|; infinity when something beside y was written.
  double error(const std::vector<T>& y) const {
    double difference = 0, size = 0;
    std::size_t inside = 0, numbers = 0;
    for (const auto value : y) numbers += !std::isnan(widened(value));
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t i = 0; i < weight.shape.n; ++i) {
        const double found = widened(y[static_cast<std::size_t>(4 + row * y_stride() + i)]);
        const double wanted = expected[static_cast<std::size_t>(row * weight.shape.n + i)];
        inside += !std::isnan(found);
        difference += (found - wanted) * (found - wanted);
        size += wanted * wanted;
      }
    return inside == numbers ? std::sqrt(difference / size) : INFINITY;
  }
  /// Two roundings, as on a device.
  static constexpr double kMost = 2 * (std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-9);

  const Weight& weight;
  std::int64_t m;
  std::vector<T> x;
  std::vector<float> bias;
  std::vector<double> expected;
  /// Of zeros at first, as are all that follow.
  std::vector<char> workspace = std::vector<char>(workspace_bytes());
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Size {
  std::int64_t n, k, group;
};
constexpr Size kSizes[] = {{8, 8, 32},     {72, 136, 32},  {200, 320, 32}, {72, 136, 64},
                           {200, 192, 64}, {136, 328, 128}, {200, 264, 264}};

}  // namespace

TEST_CASE_TEMPLATE("a product that streams its weight is near float64 and writes all of y alone", T,
                   __half, __nv_bfloat16) {
  std::mt19937 random(1);
  int turn = 0;
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const auto& [n, k, group] : kSizes) {
      const auto weight = random_weight<T>(kind, n, k, group, random);
      for (const auto& [high, rows] : kInstances)
        for (const bool split : {false, true}) {
          Product<T> product(weight, rows[++turn % 2], turn % 3 != 0, random);
          const auto plan = plan_stream(weight.shape, product.m, kLimits, high, split);
          CAPTURE(weight.name());
          CAPTURE(std::string(kNameOf<T>));
          CAPTURE(product.m);
          CAPTURE(high);
          CAPTURE(plan.split.ranges);
          CHECK(product.error(product.by_plan(plan)) < product.kMost);
        }
    }
}

TEST_CASE_TEMPLATE("a product has the same bits whichever thread goes first, and again", T, __half,
                   __nv_bfloat16) {
  std::mt19937 random(2);
  for (const auto kind : {CodeKind::int4, CodeKind::table4})
    for (const std::int64_t group : {32, 64}) {
      const auto weight = random_weight<T>(kind, 136, 328, group, random);
      for (const auto& [high, rows] : kInstances)
        for (const bool split : {false, true}) {
          Product<T> product(weight, rows[1] - 1, true, random);
          const auto plan = plan_stream(weight.shape, product.m, kLimits, high, split);
          const auto first = product.by_plan(plan);
          CAPTURE(weight.name());
          CAPTURE(high);
          CAPTURE(split);
          CHECK(product.error(first) < product.kMost);
          for (const auto& schedule : kSchedules) {
            const Scheduled scheduled(schedule);
            CHECK(same_bits(product.by_plan(plan), first));
          }
        }
    }
}

TEST_CASE("a product of few processors and little shared memory is the same product") {
  std::mt19937 random(3);
  const auto weight = random_weight<__half>(CodeKind::int4, 200, 640, 128, random);
  for (const std::int64_t m : {1, 12, 32}) {
    Product<__half> product(weight, m, true, random);
    for (const int processors : {1, 2, 7, 40})
      for (const std::size_t bytes : {std::size_t{24} << 10, emulated::kMostSharedBytes}) {
        const auto plan = plan_stream(weight.shape, m, {processors, bytes, false});
        CAPTURE(m);
        CAPTURE(plan.warps);
        CAPTURE(plan.split.ranges);
        // Partial sums of more blocks than the device has would not fit.
        if (plan.split.ranges != plan.split.tiles) CHECK(plan.split.ranges <= processors);
        product.workspace.assign(4096 + 40 * sizeof(float) * kStreamPartial, 0);
        CHECK(product.error(product.by_plan(plan)) < product.kMost);
      }
  }
}

TEST_CASE("without wgmma a product of any rows goes by 32, and 64 are worth it") {
  std::mt19937 random(4);
  const auto weight = random_weight<__nv_bfloat16>(CodeKind::int4, 72, 136, 64, random);
  CHECK(most_rows(weight.view()) == 64);
  for (const std::int64_t m : {1, 32, 33, 70}) {
    Product<__nv_bfloat16> product(weight, m, true, random);
    std::vector<__nv_bfloat16> y;
    CHECK(multiply(product.args(y), nullptr) == cudaSuccess);
    CHECK(product.error(y) < product.kMost);
    CHECK(multiply_by(Way::wgmma, 0, product.args(y), nullptr) == cudaErrorNotSupported);
  }
}

TEST_CASE("a product that does not fit is refused and writes nothing") {
  std::mt19937 random(5);
  const auto weight = random_weight<__half>(CodeKind::int4, 64, 128, 64, random);
  Product<__half> product(weight, 1, false, random);
  std::vector<__half> y;
  const auto refused = [&](auto change) {
    auto args = product.args(y);
    change(args);
    CHECK(multiply(args, nullptr) == cudaErrorInvalidValue);
    for (const auto value : y) CHECK(std::isnan(widened(value)));
  };
  refused([](ProductArgs& args) { args.workspace = nullptr; });
  refused([](ProductArgs& args) { args.x_stride = 127; });
  refused([](ProductArgs& args) { args.y_stride = 65; });
  refused([](ProductArgs& args) { args.m = -1; });
  refused([](ProductArgs& args) { args.weight.shape.n = 60; });
}
