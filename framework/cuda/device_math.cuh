#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Pairs of 16-bit numbers in registers, and how codes become such pairs.

namespace graft::cuda {

template <class T>
struct Pair;
template <>
struct Pair<__half> {
  using type = __half2;
  static constexpr std::uint32_t kMagic = 0x64006400;  ///< | code: 1024 + code
  static constexpr std::uint32_t kOnes = 0x3C003C00;
};
template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
  static constexpr std::uint32_t kMagic = 0x43004300;  ///< | code: 128 + code
  static constexpr std::uint32_t kOnes = 0x3F803F80;
};

template <class T>
__device__ __forceinline__ typename Pair<T>::type as_pair(std::uint32_t bits) {
  typename Pair<T>::type out;
  *reinterpret_cast<std::uint32_t*>(&out) = bits;
  return out;
}
template <class P>
__device__ __forceinline__ std::uint32_t bits_of(P pair) {
  return *reinterpret_cast<std::uint32_t*>(&pair);
}

/// (a & b) | c, on a device in one instruction.
__device__ __forceinline__ std::uint32_t and_or(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  return (a & b) | c;
#endif
}

/// Both halves the zero point in the upper half of a word, as magic numbers.
template <class T>
__device__ __forceinline__ std::uint32_t zero_pair(std::uint32_t word) {
  return __byte_perm(word, 0, 0x3232) | Pair<T>::kMagic;
}

/// The scale in the lower half of a word.
template <class T>
__device__ __forceinline__ float scale_of(std::uint32_t word) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xFFFF)));
  else
    return __uint_as_float(word << 16);
}

/// What with_magic() adds to a code, plus the zero point in the upper half of a word.
template <class T>
__device__ __forceinline__ float magic_zero(std::uint32_t word) {
  if constexpr (std::is_same_v<T, __half>)
    return __uint_as_float(and_or(word >> 3, 0x003FE000, 0x44800000));
  else
    return __uint_as_float(and_or(word, 0xFFFF0000, 0x43000000));
}

/// Codes of one register of a fragment, plus the magic number.
template <class T>
__device__ __forceinline__ std::uint32_t with_magic(std::uint32_t codes, int reg) {
  return and_or(codes >> (4 * reg), 0x000F000F, Pair<T>::kMagic);
}

/// Codes of one register of a fragment, less their zero point; exact.
template <class T>
__device__ __forceinline__ std::uint32_t centred(std::uint32_t codes, int reg,
                                                 std::uint32_t zeros) {
  return bits_of(__hsub2(as_pair<T>(and_or(codes >> (4 * reg), 0x000F000F, Pair<T>::kMagic)),
                         as_pair<T>(zeros)));
}

__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  typename Pair<T>::type out;
  out.x = from_float<T>(low);
  out.y = from_float<T>(high);
  return bits_of(out);
}

/// Eight numbers as 16 bytes, or as 32.
template <class T>
struct Eight {
  uint4 words[sizeof(T) / 2];
};
template <class T>
__device__ __forceinline__ Eight<T> eight(const float (&v)[8]) {
  if constexpr (sizeof(T) == 2)
    return {{{pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])}}};
  else
    return {{{__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
              __float_as_uint(v[3])},
             {__float_as_uint(v[4]), __float_as_uint(v[5]), __float_as_uint(v[6]),
              __float_as_uint(v[7])}}};
}

}  // namespace graft::cuda
