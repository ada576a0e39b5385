#include "kernels/code_tables.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace graft::bnb {
namespace {

constexpr std::array<float, 16> kNf4{
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};

std::array<float, 16> fp4() {
  constexpr std::array<float, 8> kTwelfths{0, 0.0625F, 8, 12, 4, 6, 2, 3};
  std::array<float, 16> table{};
  for (std::size_t i = 0; i < 8; ++i) {
    table[i] = kTwelfths[i] / 12.0F;
    table[i + 8] = i == 0 ? 0.0F : -table[i];
  }
  return table;
}

/// Element `i` of `count` float32 numbers from 0.1 to 1, computed from the nearer end with one
/// rounding as LibTorch does.
float linspace(int i, int count) {
  const float start = 0.1F, end = 1.0F;
  const float step = (end - start) / static_cast<float>(count - 1);
  return i < count / 2 ? std::fma(step, static_cast<float>(i), start)
                       : std::fma(-step, static_cast<float>(count - i - 1), end);
}

std::array<float, 256> make_dynamic_map() {
  std::vector<float> values{0.0F, 1.0F};
  for (int i = 0; i < 7; ++i) {
    const int intervals = 1 << i;
    const auto power = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j < intervals; ++j) {
      const float mean = (linspace(j, intervals + 1) + linspace(j + 1, intervals + 1)) / 2.0F;
      values.push_back(power * mean);
      values.push_back(-(power * mean));
    }
  }
  std::sort(values.begin(), values.end());
  std::array<float, 256> map{};
  std::copy_n(values.begin(), map.size(), map.begin());
  return map;
}

}  // namespace

const std::array<float, 16>& code_table(QuantType type) {
  static const std::array<float, 16> kFp4 = fp4();
  return type == QuantType::nf4 ? kNf4 : kFp4;
}

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> kMap = make_dynamic_map();
  return kMap;
}

}  // namespace graft::bnb
