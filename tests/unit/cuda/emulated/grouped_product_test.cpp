#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/stream_product.h"
#include "weights.h"

using namespace graft;
using namespace graft::cuda;
using namespace graft::test;

namespace {

constexpr DeviceLimits kLimits{emulated::kProcessors, emulated::kMostSharedBytes, true};

struct Size {
  std::int64_t n, k, group;
};

/// Weights of one shape and table, each with rows of its own; every other one has a bias. A row
/// that no weight has is between the second segment and the third.
template <class T>
struct Grouped {
  Grouped(CodeKind kind, const Size& size, const std::vector<std::int64_t>& rows,
          std::mt19937& random)
      : size(size), workspace(workspace_bytes()) {
    std::normal_distribution<float> normal;
    for (const auto count : rows) {
      weights.push_back(random_weight<T>(kind, size.n, size.k, size.group, random));
      // What they share: levels of the first one's table.
      auto& w = weights.back();
      if (kind == CodeKind::table4)
        for (auto& level : w.levels) {
          const auto& own = w.table;
          level = weights.front().table[static_cast<std::size_t>(
              std::find(own.begin(), own.end(), level) - own.begin())];
        }
      biases.emplace_back();
      if (weights.size() % 2 == 0)
        for (std::int64_t i = 0; i < size.n; ++i) biases.back().push_back(normal(random));
      if (weights.size() == 3) ++m;
      segments.push_back({nullptr, nullptr, nullptr, m, count});
      m += count;
    }
    for (std::size_t i = 0; i < weights.size(); ++i) {
      segments[i].codes = weights[i].codes.data();
      segments[i].words = weights[i].words.data();
      segments[i].bias = biases[i].empty() ? nullptr : biases[i].data();
    }
    // A segment's rows are of a size of their own: what it takes from another one shows.
    for (std::int64_t i = 0; i < m * x_stride(); ++i)
      x.push_back(rounded<T>(normal(random) * static_cast<float>(1 + i / x_stride())));
  }
  std::int64_t x_stride() const { return size.k + 8; }
  std::int64_t y_stride() const { return size.n + 6; }

  ProductArgs all(std::vector<T>& y) {
    y.assign(static_cast<std::size_t>(m * y_stride()), rounded<T>(NAN));
    auto shared = weights.front().view();
    shared.codes = nullptr;
    shared.words = nullptr;
    return {shared,   m,          x.data(), x_stride(),
            y.data(), y_stride(), nullptr,  workspace.data()};
  }
  std::vector<T> run() {
    std::vector<T> y;
    CHECK(multiply_grouped(all(y), segments, nullptr) == cudaSuccess);
    return y;
  }
  /// In one launch with an instance of the kernel.
  std::vector<T> by_plan(int high, bool split) {
    std::vector<T> y;
    const auto launches = launches_of(weights.front().shape, segments);
    REQUIRE(launches.size() == 1);
    const auto plan = plan_stream(weights.front().shape, launches[0].m, kLimits, high, split,
                                  static_cast<int>(launches[0].segments.size()));
    CHECK(multiply_stream(plan, all(y), launches[0].segments, nullptr) == cudaSuccess);
    return y;
  }

  /// The largest |y - expected| / |expected| of a row against float64; infinity where something
  /// else was written.
  double error(const std::vector<T>& y) const {
    std::vector<int> written(y.size());
    double most = 0;
    for (std::size_t s = 0; s < segments.size(); ++s)
      for (auto row = segments[s].first; row < segments[s].first + segments[s].rows; ++row) {
        double difference = 0, square = 0;
        for (std::int64_t i = 0; i < size.n; ++i) {
          double sum = biases[s].empty() ? 0 : biases[s][static_cast<std::size_t>(i)];
          for (std::int64_t j = 0; j < size.k; ++j) {
            const auto at = static_cast<std::size_t>(i * size.k + j);
            sum += static_cast<double>(weights[s].levels[at]) * weights[s].scales[at] *
                   widened(x[static_cast<std::size_t>(row * x_stride() + j)]);
          }
          const auto at = static_cast<std::size_t>(row * y_stride() + i);
          written[at] = 1;
          const double found = widened(y[at]);
          difference += (found - sum) * (found - sum);
          square += sum * sum;
        }
        most = std::max(most, std::isnan(difference) ? INFINITY : std::sqrt(difference / square));
      }
    for (std::size_t i = 0; i < y.size(); ++i)
      if (!written[i] && !std::isnan(widened(y[i]))) return INFINITY;
    return most;
  }
  /// Two roundings, as of a single product; of rows, which differ more than all together.
  static constexpr double kMost = 3 * (std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-9);

  Size size;
  std::vector<Weight> weights;
  std::vector<std::vector<float>> biases;
  std::vector<ProductSegment> segments;
  std::int64_t m = 0;
  std::vector<T> x;
  std::vector<char> workspace;  ///< of zeros at first, as are all that follow
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

constexpr CodeKind kKinds[] = {CodeKind::int4, CodeKind::table4};

}  // namespace

TEST_CASE_TEMPLATE("each segment of a grouped product is near float64 and nothing else is written",
                   T, __half, __nv_bfloat16) {
  std::mt19937 random(1);
  const std::vector<std::int64_t> rows[] = {
      {1}, {1, 1, 1, 1, 1, 1, 1, 1}, {3, 8, 0, 1, 5}, {12, 1, 16, 9}, {32, 1, 17, 40}};
  for (const auto kind : kKinds)
    for (const auto& size : {Size{72, 136, 32}, {200, 192, 64}, {136, 328, 128}, {40, 264, 264}})
      for (const auto& counts : rows) {
        Grouped<T> product(kind, size, counts, random);
        CAPTURE(product.weights.front().name());
        CAPTURE(counts.size());
        CHECK(product.error(product.run()) < Grouped<T>::kMost);
      }
}

TEST_CASE_TEMPLATE("all instances of a grouped product have the same bits in all orders of threads",
                   T, __half, __nv_bfloat16) {
  struct Instance {
    int high;
    std::vector<std::int64_t> rows;
  };
  const Instance instances[] = {{1, {1, 8, 2}},  {2, {8, 3, 1, 1}}, {4, {1, 1, 7}},
                                {2, {9, 1, 16}}, {4, {1, 13, 2}},   {2, {32, 1, 20}}};
  std::mt19937 random(2);
  for (const auto kind : kKinds)
    for (const std::int64_t group : {32, 64})
      for (const auto& [high, rows] : instances) {
        Grouped<T> product(kind, {136, 328, group}, rows, random);
        for (const bool split : {false, true}) {
          const auto first = product.by_plan(high, split);
          CAPTURE(product.weights.front().name());
          CAPTURE(high);
          CAPTURE(split);
          CHECK(product.error(first) < Grouped<T>::kMost);
          for (const auto& schedule : kSchedules) {
            const Scheduled scheduled(schedule);
            CHECK(same_bits(product.by_plan(high, split), first));
          }
        }
      }
}

TEST_CASE("a grouped product of one segment has the bits of the single product") {
  std::mt19937 random(3);
  for (const std::int64_t m : {1, 8, 13, 32}) {
    Grouped<__half> product(CodeKind::int4, {136, 328, 64}, {m}, random);
    std::vector<__half> y;
    auto args = product.all(y);
    args.weight = product.weights.front().view();
    CHECK(multiply(args, nullptr) == cudaSuccess);
    CHECK(same_bits(product.run(), y));
  }
}

TEST_CASE("more segments than a launch holds are a second launch") {
  std::mt19937 random(4);
  const std::vector<std::int64_t> rows(kMostSegments + 5, 1);
  Grouped<__half> product(CodeKind::int4, {16, 64, 32}, rows, random);
  CHECK(launches_of(product.weights.front().shape, product.segments).size() == 2);
  CHECK(product.error(product.run()) < Grouped<__half>::kMost);
}

TEST_CASE("a grouped product that does not fit is refused and writes nothing") {
  std::mt19937 random(5);
  Grouped<__half> product(CodeKind::int4, {16, 64, 32}, {1, 2}, random);
  std::vector<__half> y;
  const auto refused = [&](auto change) {
    auto all = product.all(y);
    auto segments = product.segments;
    change(all, segments);
    CHECK(multiply_grouped(all, segments, nullptr) == cudaErrorInvalidValue);
    for (const auto value : y) CHECK(std::isnan(widened(value)));
  };
  using Segments = std::vector<ProductSegment>;
  refused([](ProductArgs& all, Segments&) { all.workspace = nullptr; });
  refused([](ProductArgs& all, Segments&) { all.x_stride = 65; });
  refused([](ProductArgs& all, Segments&) { all.m = 2; });
  refused([](ProductArgs&, Segments& segments) { segments[1].first = -1; });
  refused([](ProductArgs&, Segments& segments) { segments[1].rows = -1; });
  CHECK(multiply_grouped(product.all(y), {}, nullptr) == cudaSuccess);
}
