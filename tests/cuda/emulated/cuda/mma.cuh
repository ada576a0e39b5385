#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

// In place of framework/cuda/mma.cuh: where the elements of a matrix lie in the registers of a warp
// is from PTX ISA, sections "Matrix fragments for ...".

namespace graft::emulated {

struct LaneOfProduct {
  const std::uint32_t* a;  // [4]
  std::uint32_t b[2];
  void* c;  // [4]
};

/// C += A B with A [16][4 * kPacked * 2] and B [4 * kPacked * 2][8] of registers that hold kPacked
/// elements of `Element`; sums of one product are made in `Sum` and rounded once.
template <class Sum, class Element, class Result>
void multiply_matrices(const Lanes& lanes) {
  constexpr int kPacked = 4 / sizeof(Element), kInner = 8 * kPacked;
  Sum a[16][kInner], b[kInner][8];
  const auto unpack = [](std::uint32_t bits, int i) {
    Element out;
    std::memcpy(&out, reinterpret_cast<const char*>(&bits) + i * sizeof(Element), sizeof(Element));
    if constexpr (std::is_same_v<Element, __half>)
      return static_cast<Sum>(__half2float(out));
    else if constexpr (std::is_same_v<Element, __nv_bfloat16>)
      return static_cast<Sum>(__bfloat162float(out));
    else
      return static_cast<Sum>(out);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const LaneOfProduct*>(lanes[static_cast<std::size_t>(lane)]);
    const int inner = lane % 4 * kPacked;
    for (int i = 0; i < kPacked; ++i) {
      for (int reg = 0; reg < 4; ++reg)
        a[lane / 4 + reg % 2 * 8][inner + reg / 2 * 4 * kPacked + i] = unpack(own.a[reg], i);
      for (int reg = 0; reg < 2; ++reg)
        b[inner + reg * 4 * kPacked + i][lane / 4] = unpack(own.b[reg], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      auto& c = static_cast<Result*>(
          static_cast<const LaneOfProduct*>(lanes[static_cast<std::size_t>(lane)])->c)[i];
      Sum sum = static_cast<Sum>(c);
      for (int k = 0; k < kInner; ++k)
        sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
      c = static_cast<Result>(sum);
    }
}

}  // namespace graft::emulated

namespace graft::cuda {

inline void load_matrices(std::uint32_t (&b)[4], std::uint32_t address) {
  struct Own {
    std::uint32_t* to;
    std::uint32_t address;
  } own{b, address};
  emulated::meet_warp(0xFFFFFFFF, "ldmatrix", &own, [](const emulated::Lanes& lanes) {
    for (std::size_t matrix = 0; matrix < 4; ++matrix)
      for (std::size_t row = 0; row < 8; ++row) {
        const char* from = emulated::at_shared(
            "ldmatrix", static_cast<const Own*>(lanes[matrix * 8 + row])->address, 16, 16);
        for (std::size_t i = 0; i < 4; ++i)
          std::memcpy(static_cast<const Own*>(lanes[row * 4 + i])->to + matrix, from + i * 4, 4);
      }
  });
}

template <class T>
void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::LaneOfProduct own{a, {b0, b1}, c};
  emulated::meet_warp(0xFFFFFFFF, "mma.m16n8k16", &own,
                      emulated::multiply_matrices<double, T, float>);
}
inline void mma(int (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::LaneOfProduct own{a, {b0, b1}, c};
  emulated::meet_warp(0xFFFFFFFF, "mma.m16n8k32", &own,
                      emulated::multiply_matrices<int, std::int8_t, int>);
}

}  // namespace graft::cuda
