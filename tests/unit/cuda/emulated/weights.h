#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "block.h"
#include "cuda/dequantize.h"

// Random weights in the layout of the CUDA kernels, and what they stand for.

namespace graft::test {

using Order = emulated::Schedule::Order;

/// The first is what kernels run with unless a test says otherwise.
inline constexpr emulated::Schedule kSchedules[] = {
    {}, {Order::descending, 1, true}, {Order::shuffled, 1, false}, {Order::shuffled, 2, true}};

/// While it lives.
struct Scheduled {
  explicit Scheduled(const emulated::Schedule& schedule) { emulated::set_schedule(schedule); }
  ~Scheduled() { emulated::set_schedule({}); }
  Scheduled(const Scheduled&) = delete;
  Scheduled& operator=(const Scheduled&) = delete;
};

template <class T>
float widened(T value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return value;
}
template <class T>
T rounded(float value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}
template <class T>
constexpr cuda::Element kElement =
    std::is_same_v<T, __half> ? cuda::Element::f16 : cuda::Element::bf16;
template <class T>
constexpr cuda::DenseType kDenseType = std::is_same_v<T, __half>          ? cuda::DenseType::f16
                                       : std::is_same_v<T, __nv_bfloat16> ? cuda::DenseType::bf16
                                                                          : cuda::DenseType::f32;
template <class T>
constexpr const char* kNameOf = std::is_same_v<T, __half>          ? "f16"
                                : std::is_same_v<T, __nv_bfloat16> ? "bf16"
                                                                   : "f32";

struct Weight {
  cuda::FragmentShape shape;
  cuda::Element element = cuda::Element::bf16;
  std::vector<std::uint32_t> plain;         ///< [k / 8][n], first input in the lowest bits
  std::vector<std::uint32_t> codes, words;  ///< as the kernels take them
  std::array<float, 16> table{};
  std::vector<float> levels, scales;  ///< [n][k]: code - zero or table[code], and its scale

  cuda::Fragments view() const {
    return {shape, codes.data(), words.data(), table.data(), element};
  }
  std::string name() const {
    return std::string(shape.kind == cuda::CodeKind::int4 ? "int4 " : "table ") +
           std::to_string(shape.n) + "x" + std::to_string(shape.k) + " groups of " +
           std::to_string(shape.group);
  }
};

/// Scales near 0.01, of int4 rounded to T; zero points from 0 to 16. Codes of the padding are 0.
template <class T>
Weight random_weight(cuda::CodeKind kind, std::int64_t n, std::int64_t k, std::int64_t group,
                     std::mt19937& random) {
  Weight w;
  w.shape = cuda::fragment_shape(kind, n, k, group);
  w.element = kElement<T>;
  w.plain.resize(static_cast<std::size_t>(k / 8 * n));
  w.codes.resize(static_cast<std::size_t>(w.shape.code_bytes / 4));
  w.words.resize(static_cast<std::size_t>(w.shape.word_count));
  std::uniform_real_distribution<float> unit(-1, 1);
  for (auto& level : w.table) level = unit(random);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < k; ++j) {
      auto& word = w.words[static_cast<std::size_t>(
          word_place(w.shape, i, j >> w.shape.group_shift))];
      if (w.shape.group_shift == 31 ? j == 0 : j % w.shape.group == 0) {
        const float scale = 0.01F + 0.005F * unit(random);
        if (kind == cuda::CodeKind::int4) {
          const T half = rounded<T>(scale);
          std::uint16_t bits;
          std::memcpy(&bits, &half, 2);
          word = bits | static_cast<std::uint32_t>(random() % 17) << 16;
        } else {
          word = __float_as_uint(scale);
        }
      }
      const auto code = static_cast<std::uint32_t>(random() % 16);
      const auto place = code_place(w.shape, i, j);
      w.codes[static_cast<std::size_t>(place.word)] |= code << place.shift;
      w.plain[static_cast<std::size_t>(j / 8 * n + i)] |= code << (j % 8 * 4);
      if (kind == cuda::CodeKind::int4) {
        const auto bits = static_cast<std::uint16_t>(word);
        T half;
        std::memcpy(&half, &bits, 2);
        w.levels.push_back(static_cast<float>(code) - static_cast<float>(word >> 16));
        w.scales.push_back(widened(half));
      } else {
        w.levels.push_back(w.table[code]);
        w.scales.push_back(__uint_as_float(word));
      }
    }
  return w;
}

}  // namespace graft::test
