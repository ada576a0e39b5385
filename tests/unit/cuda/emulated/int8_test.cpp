#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>

#include "graft/pool.h"
#include "kernels/int8_cuda.h"
#include "kernels/row_int8.h"
#include "weights.h"

using namespace graft;
using namespace graft::test;

namespace {

template <class T>
constexpr kernels::ElementType kElementType =
    std::is_same_v<T, __half>          ? kernels::ElementType::f16
    : std::is_same_v<T, __nv_bfloat16> ? kernels::ElementType::bf16
                                       : kernels::ElementType::f32;

struct Layer {
  std::int64_t n, k;
  std::vector<std::int8_t> weight;
  std::vector<float> scales, bias;

  Layer(std::int64_t outputs, std::int64_t inputs, std::mt19937& random)
      : n(outputs), k(inputs), weight(static_cast<std::size_t>(n * k)) {
    for (auto& code : weight)
      code = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    for (std::int64_t i = 0; i < n; ++i) {
      scales.push_back(static_cast<float>(random() % 1000) / 1000 + 0.1F);
      bias.push_back(static_cast<float>(random() % 1000) / 500 - 1);
    }
  }
};

template <class T>
std::vector<T> on_cpu(const Layer& layer, const std::vector<T>& x, std::int64_t m, float threshold,
                      bool with_bias) {
  const auto shape =
      kernels::panel_shape(kernels::PanelKind::int8, layer.n, layer.k, layer.k);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(shape.code_bytes));
  const auto read = [](const void* self, std::int64_t panel, std::int64_t first, std::int64_t rows,
                       std::uint8_t* to) {
    const auto& from = *static_cast<const Layer*>(self);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < 16 && panel * 16 + j < from.n; ++j)
        to[i * 16 + j] = static_cast<std::uint8_t>(
            from.weight[static_cast<std::size_t>((panel * 16 + j) * from.k + first + i)] + 128);
  };
  kernels::pack_panels(shape, {read, &layer}, 0, shape.panels, codes.data());
  std::vector<T> y(static_cast<std::size_t>(m * layer.n));
  kernels::RowInt8Args args;
  args.shape = &shape;
  args.codes = codes.data();
  args.scales = layer.scales.data();
  args.threshold = threshold;
  args.m = m;
  args.x = x.data();
  args.x_type = args.y_type = kElementType<T>;
  args.x_stride = layer.k;
  args.y = y.data();
  args.y_stride = layer.n;
  args.bias = with_bias ? layer.bias.data() : nullptr;
  graft_pool serial{};  // without staged jobs
  serial.size = offsetof(graft_pool, open_staged);
  serial.threads = []() noexcept { return 1; };
  serial.run = [](std::int64_t chunks, void (*run)(void*, std::int64_t) noexcept,
                  void* context) noexcept {
    for (std::int64_t i = 0; i < chunks; ++i) run(context, i);
  };
  kernels::multiply_rows_int8_at(kernels::CpuLevel::scalar, args, serial);
  return y;
}

/// NaN before; a row behind the last one that has to stay so.
template <class T>
std::vector<T> on_device(const Layer& layer, const std::vector<T>& x, std::int64_t m,
                         float threshold, bool with_bias) {
  std::vector<T> y(static_cast<std::size_t>((m + 1) * layer.n), rounded<T>(NAN));
  std::vector<char> workspace(bnb::row_int8_workspace(m, layer.k), 'x');
  bnb::RowInt8Cuda args;
  args.weight = layer.weight.data();
  args.scales = layer.scales.data();
  args.threshold = threshold;
  args.m = m;
  args.n = layer.n;
  args.k = layer.k;
  args.type = kDenseType<T>;
  args.x = x.data();
  args.y = y.data();
  args.bias = with_bias ? layer.bias.data() : nullptr;
  args.workspace = workspace.data();
  CHECK(bnb::multiply_rows_int8_cuda(args, nullptr) == cudaSuccess);
  for (std::int64_t i = 0; i < layer.n; ++i, y.pop_back()) CHECK(std::isnan(widened(y.back())));
  return y;
}

/// With columns that leave int8: the fourth, and the last.
template <class T>
std::vector<T> random_rows(std::int64_t m, std::int64_t k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<T> x;
  for (std::int64_t row = 0; row < m; ++row)
    for (std::int64_t i = 0; i < k; ++i)
      x.push_back(rounded<T>(i == k - 1 ? 7 : normal(random) * (i == 3 ? 10.0F : 1.0F)));
  return x;
}

/// NaN is like NaN.
template <class T>
std::size_t differences(const std::vector<T>& a, const std::vector<T>& b) {
  std::size_t out = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    out += !(widened(a[i]) == widened(b[i]) ||
             (std::isnan(widened(a[i])) && std::isnan(widened(b[i]))));
  return out;
}

struct Size {
  std::int64_t n, k, m;
};
constexpr Size kSizes[] = {{64, 64, 1}, {64, 64, 64}, {130, 144, 7}, {70, 1040, 70}, {8, 16, 3}};

}  // namespace

TEST_CASE_TEMPLATE("LLM.int8 on an emulated device gives what the CPU gives", T, __half,
                   __nv_bfloat16, float) {
  std::mt19937 random(1);
  for (const auto& [n, k, m] : kSizes) {
    const Layer layer(n, k, random);
    const auto x = random_rows<T>(m, k, random);
    for (const float threshold : {6.0F, 0.0F}) {
      const bool with_bias = threshold > 0;
      const auto expected = on_cpu(layer, x, m, threshold, with_bias);
      CAPTURE(std::string(kNameOf<T>));
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(m);
      CAPTURE(threshold);
      for (const auto& schedule : kSchedules) {
        const Scheduled scheduled(schedule);
        CHECK(differences(on_device(layer, x, m, threshold, with_bias), expected) == 0);
        if (k > 1000) break;
      }
    }
  }
}

TEST_CASE_TEMPLATE("a row with NaN in LLM.int8 is NaN on an emulated device, no other row is",
                   T, __half, __nv_bfloat16, float) {
  std::mt19937 random(2);
  const Layer layer(64, 64, random);
  for (const float threshold : {6.0F, 0.0F}) {
    auto x = random_rows<T>(3, 64, random);
    x[64 + 5] = rounded<T>(NAN);
    const auto found = on_device(layer, x, 3, threshold, false);
    CHECK(differences(found, on_cpu(layer, x, 3, threshold, false)) == 0);
    for (std::size_t i = 0; i < found.size(); ++i)
      CHECK(std::isnan(widened(found[i])) == (i / 64 == 1));
  }
}

TEST_CASE("LLM.int8 of sizes that do not fit is refused, and no row is no work") {
  bnb::RowInt8Cuda args;
  args.n = args.k = 64;
  CHECK(bnb::multiply_rows_int8_cuda(args, nullptr) == cudaSuccess);
  const auto refused = [&](std::int64_t m, std::int64_t n, std::int64_t k) {
    args.m = m;
    args.n = n;
    args.k = k;
    CHECK(bnb::multiply_rows_int8_cuda(args, nullptr) == cudaErrorInvalidValue);
  };
  refused(-1, 64, 64);
  refused(1, 0, 64);
  refused(1, 64, 0);
  refused(1, 64, 72);
  refused(1, 64, 1 << 17);
  refused(65536 * 64, 64, 64);
}
