#include "cuda/byte_product.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "weights.h"

using namespace graft;
using namespace graft::cuda;
using namespace graft::test;

namespace {

struct Size {
  std::int64_t n, k, group;
};
/// Outputs that do not fill a block, groups of no power of two, a last one that is shorter, one
/// group, and more inputs than the threads of a block take in one turn.
constexpr Size kSizes[] = {{1, 16, 16},  {7, 96, 32},   {32, 128, 64},    {13, 272, 128},
                           {6, 336, 48}, {9, 208, 208}, {10, 4112, 1024}, {5, 2064, 1 << 20}};

/// Codes over the whole byte, zero points from 0 to 256.
template <class T>
struct RandomBytes {
  RandomBytes(const Size& size, std::mt19937& random) : size(size) {
    const auto groups = (size.k + size.group - 1) / size.group;
    std::uniform_real_distribution<float> unit(-1, 1);
    for (std::int64_t i = 0; i < size.n * groups; ++i) {
      const auto bits = std::bit_cast<std::uint16_t>(rounded<T>(0.01F + 0.005F * unit(random)));
      words.push_back(bits | static_cast<std::uint32_t>(random() % 257) << 16);
    }
    for (std::int64_t i = 0; i < size.n * size.k; ++i) {
      const auto code = static_cast<std::uint8_t>(random());
      const auto group = i / size.k * groups + i % size.k / size.group;
      const auto word = words[static_cast<std::size_t>(group)];
      codes.push_back(code);
      levels.push_back(static_cast<float>(code) - static_cast<float>(word >> 16));
      scales.push_back(widened(std::bit_cast<T>(static_cast<std::uint16_t>(word))));
    }
  }
  ByteWeight view() const {
    return {size.n, size.k, size.group, codes.data(), words.data(), kElement<T>};
  }

  Size size;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint32_t> words;
  std::vector<float> levels, scales;  ///< [n][k]
};

/// Rows of x and of y are wider than they need to be; what is beside y is NaN.
template <class T>
struct Product {
  Product(const RandomBytes<T>& weight, std::int64_t m, bool with_bias, std::mt19937& random)
      : weight(weight), m(m) {
    const auto [n, k, group] = weight.size;
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < m * x_stride(); ++i) x.push_back(rounded<T>(normal(random)));
    if (with_bias)
      for (std::int64_t i = 0; i < n; ++i) bias.push_back(normal(random));
  }
  std::int64_t x_stride() const { return weight.size.k + 8; }
  std::int64_t y_stride() const { return weight.size.n + 3; }

  ByteProductArgs args(std::vector<T>& y) const {
    y.assign(static_cast<std::size_t>(m * y_stride()), rounded<T>(NAN));
    return {weight.view(), m,          x.data(),
            x_stride(),    y.data(),   y_stride(),
            bias.empty() ? nullptr : bias.data()};
  }
  std::vector<T> run() const {
    std::vector<T> y;
    CHECK(multiply_bytes(args(y), nullptr) == cudaSuccess);
    return y;
  }
  /// |y - expected| / |expected| against float64; infinity when something beside y was written.
  double error(const std::vector<T>& y) const {
    const auto [n, k, group] = weight.size;
    double difference = 0, size = 0;
    for (std::int64_t row = 0; row < m; ++row)
      for (std::int64_t i = 0; i < y_stride(); ++i) {
        const double found = widened(y[static_cast<std::size_t>(row * y_stride() + i)]);
        if (i >= n) {
          if (!std::isnan(found)) return INFINITY;
          continue;
        }
        double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(i)];
        for (std::int64_t j = 0; j < k; ++j) {
          const auto at = static_cast<std::size_t>(i * k + j);
          sum += static_cast<double>(weight.levels[at]) * weight.scales[at] *
                 widened(x[static_cast<std::size_t>(row * x_stride() + j)]);
        }
        difference += (found - sum) * (found - sum);
        size += sum * sum;
      }
    return std::sqrt(difference / size);
  }
  /// Half a unit in the last place, and a little for float32 sums.
  static constexpr double kMost = 1.01 * (std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8);

  const RandomBytes<T>& weight;
  std::int64_t m;
  std::vector<T> x;
  std::vector<float> bias;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class T, class U>
void check_dequantized(const RandomBytes<T>& w, DenseType type, std::int64_t first,
                       std::int64_t count) {
  std::vector<U> out(static_cast<std::size_t>(count * w.size.k + 16), rounded<U>(1234));
  CHECK(dequantize_bytes(w.view(), first, count, type, out.data(), nullptr) == cudaSuccess);
  bool same = true;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto at = static_cast<std::size_t>(first * w.size.k) + i;
    const U expected = i < out.size() - 16 ? rounded<U>(w.levels[at] * w.scales[at])
                                           : rounded<U>(1234);
    same &= widened(out[i]) == widened(expected);
  }
  CHECK(same);
}

}  // namespace

TEST_CASE_TEMPLATE("a product of bytes is near float64, writes all of y alone, and has one result",
                   T, __half, __nv_bfloat16) {
  std::mt19937 random(1);
  bool with_bias = false;
  for (const auto& size : kSizes) {
    const RandomBytes<T> weight(size, random);
    for (const std::int64_t m : {1, 2, 3, 5, 8, 11}) {
      if (m > 5 && size.k > 1000) continue;  // it takes long, and shows nothing more
      const Product<T> product(weight, m, with_bias = !with_bias, random);
      CAPTURE(size.n);
      CAPTURE(size.k);
      CAPTURE(size.group);
      CAPTURE(m);
      const auto y = product.run();
      CHECK(product.error(y) < Product<T>::kMost);
      for (const auto& schedule : kSchedules) {
        const Scheduled scheduled(schedule);
        CHECK(same_bits(product.run(), y));
      }
    }
  }
}

TEST_CASE_TEMPLATE("a row of a product of bytes has the same bits alone and among others", T,
                   __half, __nv_bfloat16) {
  std::mt19937 random(2);
  const RandomBytes<T> weight({13, 272, 128}, random);
  const Product<T> all(weight, 11, true, random);
  const auto y = all.run();
  for (std::int64_t row = 0; row < all.m; ++row) {
    Product<T> one = all;
    one.m = 1;
    one.x.erase(one.x.begin(), one.x.begin() + row * one.x_stride());
    const auto alone = one.run();
    CHECK(std::memcmp(alone.data(), y.data() + row * all.y_stride(), 13 * sizeof(T)) == 0);
  }
}

TEST_CASE_TEMPLATE("dequantized bytes are products in float32 rounded once, and nothing beside", T,
                   __half, __nv_bfloat16) {
  std::mt19937 random(3);
  for (const auto& size : kSizes) {
    const RandomBytes<T> weight(size, random);
    CAPTURE(size.n);
    CAPTURE(size.k);
    CAPTURE(size.group);
    for (const std::int64_t first : {std::int64_t{0}, size.n / 2}) {
      check_dequantized<T, __half>(weight, DenseType::f16, first, size.n - first);
      check_dequantized<T, __nv_bfloat16>(weight, DenseType::bf16, first, size.n - first);
      check_dequantized<T, float>(weight, DenseType::f32, first, size.n - first);
    }
  }
}

TEST_CASE("bytes that do not fit are refused and nothing is written") {
  std::mt19937 random(4);
  const RandomBytes<__half> weight({8, 64, 32}, random);
  const Product<__half> product(weight, 2, false, random);
  std::vector<__half> y;
  const auto refused = [&](auto change) {
    auto args = product.args(y);
    change(args);
    CHECK(multiply_bytes(args, nullptr) == cudaErrorInvalidValue);
    for (const auto value : y) CHECK(std::isnan(widened(value)));
  };
  refused([](ByteProductArgs& args) { args.m = -1; });
  refused([](ByteProductArgs& args) { args.x_stride = 65; });
  refused([](ByteProductArgs& args) { args.weight.k = 56; });
  refused([](ByteProductArgs& args) { args.weight.group = 24; });
  refused([](ByteProductArgs& args) { args.weight.n = 0; });
  auto args = product.args(y);
  args.m = 0;
  CHECK(multiply_bytes(args, nullptr) == cudaSuccess);
  std::vector<float> out(8 * 64);
  using Outputs = std::pair<std::int64_t, std::int64_t>;
  for (const auto& [first, count] : {Outputs{0, 0}, {-1, 2}, {4, 5}})
    CHECK(dequantize_bytes(weight.view(), first, count, DenseType::f32, out.data(), nullptr) ==
          cudaErrorInvalidValue);
}
