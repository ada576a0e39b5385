#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/panels.h"

namespace graft::tests {

struct FreeBytes {
  void operator()(std::uint8_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};

/// A packed weight of random codes, scales and zero points, and the same numbers in float64.
struct RandomWeight {
  kernels::PanelWeight packed;
  std::vector<std::uint8_t> codes;  ///< [n][k]
  std::vector<float> scales;
  std::vector<std::uint16_t> half_scales;
  std::vector<std::uint8_t> small_zeros;
  std::vector<std::int16_t> wide_zeros;
  std::vector<float> table;
  std::vector<std::int32_t> order;
  std::unique_ptr<std::uint8_t, FreeBytes> memory;

  RandomWeight(kernels::PanelKind kind, std::int64_t n, std::int64_t k, std::int64_t group,
               bool shuffled = false, unsigned seed = 1) {
    using kernels::PanelKind;
    std::mt19937 random(seed);
    const auto shape = kernels::panel_shape(kind, n, k, group);
    const unsigned most = kind == PanelKind::int8 ? 255 : 15;
    codes.resize(static_cast<std::size_t>(n * k));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random() % (most + 1));
    scales.resize(static_cast<std::size_t>(shape.scale_count));
    for (auto& scale : scales)
      scale = std::uniform_real_distribution<float>(0.001F, 0.02F)(random) *
              (random() % 8 ? 1.0F : -1.0F);
    small_zeros.resize(scales.size());
    wide_zeros.resize(scales.size());
    for (std::size_t i = 0; i < scales.size(); ++i) {
      small_zeros[i] = static_cast<std::uint8_t>(random() % 17);
      wide_zeros[i] = static_cast<std::int16_t>(random() % 257);
    }
    table.resize(16);
    for (std::size_t i = 0; i < 16; ++i)
      table[i] = i == 7 ? 0.0F : std::uniform_real_distribution<float>(-1, 1)(random);
    table[15] = 1;
    order.resize(static_cast<std::size_t>(k));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    std::shuffle(order.begin(), order.end(), random);
    memory.reset(static_cast<std::uint8_t*>(
        ::operator new[](static_cast<std::size_t>(shape.code_bytes), std::align_val_t(64))));
    struct Source {
      const std::vector<std::uint8_t>* codes;
      std::int64_t n, k;
    } source{&codes, n, k};
    const auto read = [](const void* self, std::int64_t panel, std::int64_t first,
                         std::int64_t count, std::uint8_t* out) {
      const auto& at = *static_cast<const Source*>(self);
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t j = 0; j < 16; ++j)
          out[i * 16 + j] =
              panel * 16 + j < at.n
                  ? (*at.codes)[static_cast<std::size_t>((panel * 16 + j) * at.k + first + i)]
                  : std::uint8_t{0xFF};
    };
    kernels::pack_panels(shape, {+read, &source}, 0, shape.panels, memory.get());
    packed.shape = shape;
    packed.codes = memory.get();
    packed.scales = {scales.data()};
    packed.zeros = kind == PanelKind::int4   ? static_cast<const void*>(small_zeros.data())
                   : kind == PanelKind::int8 ? static_cast<const void*>(wide_zeros.data())
                                             : nullptr;
    packed.table = table.data();
    packed.order = shuffled ? order.data() : nullptr;
  }

  /// The same scales, each rounded to `type`, in 16 bits.
  void round_scales_to(kernels::ElementType type) {
    half_scales.resize(scales.size());
    for (std::size_t i = 0; i < scales.size(); ++i) {
      if (type == kernels::ElementType::f16) {
        const auto half = static_cast<_Float16>(scales[i]);
        std::memcpy(&half_scales[i], &half, 2);
        scales[i] = static_cast<float>(half);
      } else {
        auto bits = std::bit_cast<std::uint32_t>(scales[i]);
        bits = (bits + 0x8000U) & 0xFFFF0000U;
        half_scales[i] = static_cast<std::uint16_t>(bits >> 16);
        scales[i] = std::bit_cast<float>(bits);
      }
    }
    packed.scales = {half_scales.data(), type};
  }

  double value(std::int64_t output, std::int64_t i) const {
    const auto& shape = packed.shape;
    const auto code = codes[static_cast<std::size_t>(output * shape.k + i)];
    const auto at =
        static_cast<std::size_t>((output / 16 * shape.groups + i / shape.group) * 16 + output % 16);
    const double scale = static_cast<double>(scales[at]);
    switch (shape.kind) {
      case kernels::PanelKind::int4:
        return scale * (code - static_cast<int>(small_zeros[at]));
      case kernels::PanelKind::int8:
        return scale * (code - static_cast<int>(wide_zeros[at]));
      case kernels::PanelKind::table4:
        break;
    }
    return scale * static_cast<double>(table[code]);
  }

  /// Row of y in float64; `squares`: of the sums of squared products.
  std::vector<double> times(const float* x, bool squares = false) const {
    const auto& shape = packed.shape;
    std::vector<double> y(static_cast<std::size_t>(shape.n));
    for (std::int64_t o = 0; o < shape.n; ++o) {
      double sum = 0;
      for (std::int64_t i = 0; i < shape.k; ++i) {
        const double product =
            value(o, i) *
            static_cast<double>(x[packed.order ? packed.order[i] : static_cast<std::int32_t>(i)]);
        sum += squares ? product * product : product;
      }
      y[static_cast<std::size_t>(o)] = sum;
    }
    return y;
  }
};

}  // namespace graft::tests
