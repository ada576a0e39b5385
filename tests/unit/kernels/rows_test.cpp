#include "kernels/rows.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/linear.h"
#include "kernels/row_products.h"
#include "random_weight.h"
#include "thread_pool.h"

using namespace graft;
using namespace graft::kernels;
using graft::tests::RandomWeight;

namespace {

constexpr ElementType kTypes[] = {ElementType::f32, ElementType::bf16, ElementType::f16};
constexpr std::int64_t kWidths[] = {1, 2, 15, 16, 17, 40, 64, 576};

std::vector<float> numbers(std::int64_t count, ElementType type, unsigned seed = 5) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<std::size_t>(count));
  for (auto& value : out) value = normal(random);
  row_operations_scalar(type).round(out.data(), count);
  return out;
}

/// Half a unit in the last place of the dtype, relative.
double half_step(ElementType type) {
  return type == ElementType::f32 ? 0x1p-24 : type == ElementType::bf16 ? 0x1p-9 : 0x1p-12;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}

/// The cache of one head with `length` random tokens, and the same tokens plainly.
struct Head {
  std::int64_t dim, length;
  std::vector<float> keys, values;
  std::vector<std::byte> memory;
  HeadCache cache;

  Head(ElementType type, std::int64_t width, std::int64_t tokens)
      : dim(width),
        length(tokens),
        keys(numbers(width * tokens, type, 11)),
        values(numbers(width * tokens, type, 12)),
        memory(static_cast<std::size_t>(key_bytes(type, width, tokens) +
                                        value_bytes(type, width, tokens))),
        cache{type, width, memory.data(), memory.data() + key_bytes(type, width, tokens)} {
    for (std::int64_t i = 0; i < tokens; ++i)
      remember(cache, i, keys.data() + i * dim, values.data() + i * dim);
  }

  std::vector<float> exact(const float* q, float scale, std::int64_t first,
                           std::int64_t last) const {
    std::vector<double> weights;
    double most = -1e300, total = 0;
    for (std::int64_t key = first; key < last; ++key) {
      double sum = 0;
      for (std::int64_t d = 0; d < dim; ++d)
        sum += static_cast<double>(q[d]) *
               static_cast<double>(keys[static_cast<std::size_t>(key * dim + d)]);
      weights.push_back(sum * static_cast<double>(scale));
      most = std::max(most, weights.back());
    }
    for (auto& weight : weights) total += weight = std::exp(weight - most);
    std::vector<float> out;
    for (std::int64_t d = 0; d < dim; ++d) {
      double sum = 0;
      for (std::int64_t key = first; key < last; ++key)
        sum += weights[static_cast<std::size_t>(key - first)] *
               static_cast<double>(values[static_cast<std::size_t>(key * dim + d)]);
      out.push_back(static_cast<float>(sum / total));
    }
    return out;
  }
};

std::vector<float> attend_at(CpuLevel level, const Head& head, const std::vector<float>& q,
                             const std::vector<std::int64_t>& first,
                             const std::vector<std::int64_t>& last) {
  AttendArgs args;
  args.cache = head.cache;
  args.scale = 0.25F;
  args.rows = static_cast<std::int64_t>(last.size());
  const auto stride = value_stride(head.dim);
  std::vector<float> out(static_cast<std::size_t>(args.rows * stride));
  for (std::int64_t r = 0; r < args.rows; ++r) {
    args.q[r] = q.data() + r * head.dim;
    args.first[r] = first[static_cast<std::size_t>(r)];
    args.last[r] = last[static_cast<std::size_t>(r)];
    args.out[r] = out.data() + r * stride;
  }
  row_operations(level, head.cache.type).attend(args);
  std::vector<float> rows;
  for (std::int64_t r = 0; r < args.rows; ++r)
    rows.insert(rows.end(), out.begin() + r * stride, out.begin() + r * stride + head.dim);
  return rows;
}

}  // namespace

TEST_CASE("rounding a row is storing it in the dtype, at every level") {
  std::vector<float> odd = numbers(50, ElementType::f32);
  odd[3] = std::numeric_limits<float>::infinity();
  odd[4] = -0.0F;
  odd[5] = 1e-41F;
  odd[6] = 70000;
  odd[7] = 3.4e38F;
  for (const auto type : kTypes) {
    std::vector<char> stored(50 * 4);
    std::vector<float> expected(50);
    store_row_scalar(odd.data(), nullptr, 50, type, stored.data());
    row_operations_scalar(type).widen(stored.data(), 50, expected.data());
    for (const auto level : available_cpu_levels()) {
      auto x = odd;
      row_operations(level, type).round(x.data(), 50);
      CHECK(std::memcmp(x.data(), expected.data(), 200) == 0);
      x[9] = std::numeric_limits<float>::quiet_NaN();
      row_operations(level, type).round(x.data(), 50);
      CHECK(std::isnan(x[9]));
    }
  }
}

TEST_CASE("norm, sum, rotation and gate are those of float64, and the same bits at every level") {
  for (const auto type : kTypes)
    for (const auto n : kWidths) {
      CAPTURE(n);
      CAPTURE(static_cast<int>(type));
      const auto x = numbers(n, type), w = numbers(n, type, 6);
      const double tolerance = 8 * half_step(type);
      const auto& oracle = row_operations_scalar(type);
      std::vector<float> norm(x.size()), sum = x, gate = x, turned = x;
      oracle.rms_norm(x.data(), w.data(), n, 1e-5F, norm.data());
      oracle.add(sum.data(), w.data(), n);
      oracle.silu_times(gate.data(), w.data(), n);
      std::vector<float> cos(x.size()), sin(x.size());
      for (std::int64_t i = 0; i < n; ++i) {
        cos[static_cast<std::size_t>(i)] = std::cos(static_cast<float>(i % (n / 2 + 1)) + 1.0F);
        sin[static_cast<std::size_t>(i)] = std::sin(static_cast<float>(i % (n / 2 + 1)) + 1.0F);
      }
      oracle.round(cos.data(), n);
      oracle.round(sin.data(), n);
      oracle.rotate(turned.data(), cos.data(), sin.data(), n / 2 * 2);

      double squares = 0;
      for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
      const std::int64_t half = n / 2;
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double v = static_cast<double>(x[at]), weight = static_cast<double>(w[at]);
        const auto near = [&](float found, double exact) {
          return std::abs(static_cast<double>(found) - exact) <= tolerance * (std::abs(exact) + 1);
        };
        CHECK(near(norm[at], v * scale * weight));
        CHECK(near(sum[at], v + weight));
        CHECK(near(gate[at], v / (1 + std::exp(-v)) * weight));
        if (i >= 2 * half) continue;
        const double other = i < half ? -static_cast<double>(x[at + static_cast<std::size_t>(half)])
                                      : static_cast<double>(x[at - static_cast<std::size_t>(half)]);
        CHECK(near(turned[at],
                   v * static_cast<double>(cos[at]) + other * static_cast<double>(sin[at])));
      }
      for (const auto level : available_cpu_levels()) {
        const auto& operations = row_operations(level, type);
        auto again = x;
        operations.rms_norm(x.data(), w.data(), n, 1e-5F, again.data());
        CHECK(again == norm);
        again = x;
        operations.add(again.data(), w.data(), n);
        CHECK(again == sum);
        again = x;
        operations.silu_times(again.data(), w.data(), n);
        CHECK(again == gate);
        again = x;
        operations.rotate(again.data(), cos.data(), sin.data(), n / 2 * 2);
        CHECK(again == turned);
      }
    }
}

TEST_CASE("the gate of large numbers is zero or the number itself") {
  std::vector<float> gate{-1e30F, -200, -90, 90, 200, 1e30F}, ones(6, 1.0F);
  for (const auto level : available_cpu_levels()) {
    auto x = gate;
    row_operations(level, ElementType::f32).silu_times(x.data(), ones.data(), 6);
    for (int i = 0; i < 3; ++i) CHECK(std::abs(x[static_cast<std::size_t>(i)]) < 1e-6F);
    for (std::size_t i = 3; i < 6; ++i) CHECK(x[i] == gate[i]);
  }
}

TEST_CASE("attention is that of float64, and the same bits at every level") {
  for (const auto type : kTypes)
    for (const std::int64_t dim : {8, 32, 64, 80})
      for (const std::int64_t length : {1, 31, 33, 256, 300, 700}) {
        CAPTURE(dim);
        CAPTURE(length);
        CAPTURE(static_cast<int>(type));
        const Head head(type, dim, length);
        const auto q = numbers(4 * dim, type, 13);
        const std::vector<std::int64_t> last{length, length, (length + 1) / 2, 1};
        const std::vector<std::int64_t> first{0, length - 1, 0, 0};
        const auto found = attend_at(CpuLevel::scalar, head, q, first, last);
        for (std::size_t r = 0; r < 4; ++r) {
          const auto at = static_cast<std::ptrdiff_t>(r) * dim;
          const auto exact = head.exact(q.data() + at, 0.25F, first[r], last[r]);
          CHECK(distance({found.begin() + at, found.begin() + at + dim}, exact) <=
                8 * half_step(type) + 1e-6);
        }
        for (const auto level : available_cpu_levels())
          CHECK(attend_at(level, head, q, first, last) == found);
      }
}

TEST_CASE("a row's attention does not depend on the rows beside it") {
  const Head head(ElementType::bf16, 64, 900);
  const auto q = numbers(4 * 64, ElementType::bf16, 14);
  const std::vector<std::int64_t> first{0, 300, 511, 899}, last{900, 800, 513, 900};
  for (const auto level : available_cpu_levels()) {
    const auto together = attend_at(level, head, q, first, last);
    for (std::size_t r = 0; r < 4; ++r) {
      const auto at = static_cast<std::ptrdiff_t>(r) * 64;
      const auto alone = attend_at(level, head, {q.begin() + at, q.begin() + at + 64}, {first[r]},
                                   {last[r]});
      CHECK(alone == std::vector<float>(together.begin() + at, together.begin() + at + 64));
    }
  }
}

TEST_CASE("dense products are those of float64, and the same bits at every level") {
  for (const auto type : kTypes)
    for (const std::int64_t k : {1, 31, 32, 33, 100, 576}) {
      CAPTURE(k);
      constexpr std::int64_t n = 37;
      const auto values = numbers(n * k, type, 21), x = numbers(kDenseRows * k, type, 22);
      std::vector<char> weight(static_cast<std::size_t>(n * k * 4));
      store_row_scalar(values.data(), nullptr, n * k, type, weight.data());
      std::vector<float> oracle;
      for (const auto level : available_cpu_levels())
        for (std::int64_t m = 1; m <= kDenseRows; ++m) {
          const auto& operations = row_operations(level, type);
          std::vector<float> arranged(static_cast<std::size_t>(m * dense_stride(k)));
          for (std::int64_t r = 0; r < m; ++r)
            operations.arrange(x.data() + r * k, k, arranged.data() + r * dense_stride(k));
          std::vector<float> y(static_cast<std::size_t>(m * n));
          operations.dense({type, weight.data(), k, n, m, arranged.data(), y.data(), n});
          if (oracle.empty() || y.size() > oracle.size()) {
            for (std::int64_t r = 0; r < m; ++r)
              for (std::int64_t o = 0; o < n; ++o) {
                double exact = 0, size = 0;
                for (std::int64_t i = 0; i < k; ++i) {
                  const double product =
                      static_cast<double>(values[static_cast<std::size_t>(o * k + i)]) *
                      static_cast<double>(x[static_cast<std::size_t>(r * k + i)]);
                  exact += product;
                  size += std::abs(product);
                }
                CHECK(std::abs(static_cast<double>(y[static_cast<std::size_t>(r * n + o)]) -
                               exact) <= 1e-6 * size);
              }
            if (!oracle.empty())
              CHECK(std::equal(oracle.begin(), oracle.end(), y.begin()));
            oracle = y;
          } else {
            CHECK(std::equal(y.begin(), y.end(), oracle.begin()));
          }
        }
    }
}

TEST_CASE("a row product gives the bits of multiply, for any number of rows and any cut") {
  const std::vector<float> bias = numbers(77, ElementType::f32, 31);
  for (const auto kind : {PanelKind::int4, PanelKind::int8, PanelKind::table4})
    for (const auto act : {Act::a15, Act::a8, Act::bf16, Act::f32})
      for (const std::int64_t m : {1, 3, 16, 17, 40}) {
        CAPTURE(static_cast<int>(kind));
        CAPTURE(static_cast<int>(act));
        CAPTURE(m);
        const RandomWeight weight(kind, 77, 200, 64, true);
        const auto x = numbers(m * 200, ElementType::bf16, 32);
        std::vector<float> expected(static_cast<std::size_t>(m * 77));
        LinearArgs args;
        args.weight = &weight.packed;
        args.act = act;
        args.m = m;
        args.x = x.data();
        args.x_stride = 200;
        args.y = expected.data();
        args.y_stride = 77;
        args.bias = bias.data();
        multiply(args, tests::ThreadPool<2>::table);
        const auto product = panel_product(weight.packed, bias.data(), act);
        CHECK(product->in_features() == 200);
        CHECK(product->out_features() == 77);
        auto* prepared = static_cast<std::byte*>(std::aligned_alloc(
            64, static_cast<std::size_t>((product->prepared_bytes(m) + 63) / 64 * 64)));
        const auto parts = product->begin(m, prepared);
        for (std::int64_t part = parts; part-- > 0;)
          product->prepare(x.data(), 200, part, prepared);
        std::vector<float> y(static_cast<std::size_t>(m * 77));
        const std::int64_t unit = product->unit();
        std::vector<float> piece(static_cast<std::size_t>(m * 2 * unit));
        for (std::int64_t first = 0; first < 77; first += 2 * unit) {
          const std::int64_t count = std::min<std::int64_t>(2 * unit, 77 - first);
          product->compute(prepared, first, count, piece.data(), 2 * unit);
          for (std::int64_t r = 0; r < m; ++r)
            std::copy_n(piece.data() + r * 2 * unit, count, y.data() + r * 77 + first);
        }
        std::free(prepared);
        CHECK(y == expected);
      }
}
