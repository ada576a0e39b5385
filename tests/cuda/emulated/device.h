#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "block.h"

// What nvcc knows without an include, for kernels that a C++ compiler compiles: included before all
// else (-include).

#undef __shared__
// The fibers of a block share a thread of the host that runs nothing else.
#define __shared__ static thread_local
#define __launch_bounds__(...)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

inline void __syncthreads() { graft::emulated::meet_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFF) {
  graft::emulated::meet_warp(mask, "__syncwarp", nullptr, [](const graft::emulated::Lanes&) {});
}

/// As nvcc finds it in cuda_runtime.h.
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute what, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), what, value);
}

namespace graft::emulated {

/// Each lane's value, from the lane that it names.
template <class T>
T shuffle(const char* name, unsigned mask, T value, int from) {
  struct Own {
    T value, result;
    int from;
  } own{value, value, from};
  meet_warp(mask, name, &own, [&](const Lanes& lanes) {
    for (auto* lane : lanes) {
      if (!lane) continue;
      auto& asks = *static_cast<Own*>(lane);
      const auto* gives = static_cast<const Own*>(lanes[static_cast<std::size_t>(asks.from & 31)]);
      if (!gives)
        throw Misuse(std::string(name) + " asks lane " + std::to_string(asks.from & 31) +
                     ", which is not in its mask");
      asks.result = gives->value;
    }
  });
  return own.result;
}

}  // namespace graft::emulated

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return graft::emulated::shuffle("__shfl_sync", mask, value, from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart) {
  return graft::emulated::shuffle("__shfl_xor_sync", mask, value,
                                  graft::emulated::own_lane() ^ apart);
}

// Of one thread.

inline std::uint32_t __float_as_uint(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float __uint_as_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline int __float2int_rn(float value) { return static_cast<int>(nearbyintf(value)); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i)
    out |= static_cast<unsigned>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xFF) << (8 * i);
  return out;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
inline unsigned atomicOr(unsigned* to, unsigned bits) {
  const unsigned before = *to;
  *to |= bits;
  return before;
}
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
