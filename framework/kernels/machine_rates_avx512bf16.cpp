#include <immintrin.h>

#include "kernels/machine_rates.h"

namespace graft::kernels {

std::int64_t multiply_bf16_avx512bf16(std::int64_t rounds) {
  const __m512 zero = _mm512_setzero_ps();
  // Variables, not an array: that would live in memory and be what is measured.
  __m512 s0 = zero, s1 = zero, s2 = zero, s3 = zero, s4 = zero, s5 = zero;
  __m512 s6 = zero, s7 = zero, s8 = zero, s9 = zero, s10 = zero, s11 = zero;
  const __m512 half = _mm512_set1_ps(0.5F);
  const __m512bh factor = _mm512_cvtne2ps_pbh(half, half);
  const auto step = [&](__m512& sum) {
    sum = _mm512_dpbf16_ps(sum, factor, factor);
    __asm__ volatile("" : "+v"(sum));
  };
  for (std::int64_t i = 0; i < rounds; ++i) {
    step(s0);
    step(s1);
    step(s2);
    step(s3);
    step(s4);
    step(s5);
    step(s6);
    step(s7);
    step(s8);
    step(s9);
    step(s10);
    step(s11);
  }
  return rounds * 12 * 32;
}

}  // namespace graft::kernels
