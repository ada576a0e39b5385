#pragma once

#include <cmath>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "kernels/linear.h"
#include "unit/kernels/thread_pool.h"

namespace graft::tests {

/// A packed weight that owns its memory, for tests of what writes panels.
class PanelMemory {
 public:
  explicit PanelMemory(const kernels::PanelShape& of)
      : shape(of),
        codes_(static_cast<std::uint8_t*>(
            ::operator new[](static_cast<std::size_t>(of.code_bytes), std::align_val_t(64)))),
        scales_(static_cast<std::size_t>(of.scale_count)),
        small_zeros_(scales_.size()),
        wide_zeros_(scales_.size()) {}

  std::uint8_t* codes() { return codes_.get(); }

  void set_group(std::int64_t output, std::int64_t group, float scale, int zero) {
    const auto at =
        static_cast<std::size_t>((output / 16 * shape.groups + group) * 16 + output % 16);
    scales_[at] = scale;
    small_zeros_[at] = static_cast<std::uint8_t>(zero);
    wide_zeros_[at] = static_cast<std::int16_t>(zero);
  }

  kernels::PanelWeight weight() const {
    kernels::PanelWeight out;
    out.shape = shape;
    out.codes = codes_.get();
    out.scales = {scales_.data()};
    out.zeros = shape.kind == kernels::PanelKind::int8
                    ? static_cast<const void*>(wide_zeros_.data())
                    : static_cast<const void*>(small_zeros_.data());
    return out;
  }

  const kernels::PanelShape shape;

 private:
  struct Free {
    void operator()(std::uint8_t* memory) const {
      ::operator delete[](memory, std::align_val_t(64));
    }
  };
  std::unique_ptr<std::uint8_t, Free> codes_;
  std::vector<float> scales_;
  std::vector<std::uint8_t> small_zeros_;
  std::vector<std::int16_t> wide_zeros_;
};

/// The largest error of a product of `weight` in float32 with one random row, against float64 with
/// the dense [k][n], over the sum of the products' sizes.
inline double product_error(const kernels::PanelWeight& weight, const std::vector<float>& dense) {
  const auto n = static_cast<std::size_t>(weight.shape.n);
  const auto k = static_cast<std::size_t>(weight.shape.k);
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> x(k), y(n);
  for (auto& value : x) value = normal(random);
  kernels::LinearArgs args;
  args.weight = &weight;
  args.act = kernels::Act::f32;
  args.m = 1;
  args.x = x.data();
  args.x_stride = weight.shape.k;
  args.y = y.data();
  args.y_stride = weight.shape.n;
  kernels::multiply(args, ThreadPool<2>::table);
  double worst = 0;
  for (std::size_t output = 0; output < n; ++output) {
    double sum = 0, size = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const double term = static_cast<double>(x[i]) * static_cast<double>(dense[i * n + output]);
      sum += term;
      size += std::abs(term);
    }
    worst = std::fmax(worst, std::abs(static_cast<double>(y[output]) - sum) / size);
  }
  return worst;
}

}  // namespace graft::tests
