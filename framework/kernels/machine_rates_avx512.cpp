#include <immintrin.h>

#include "kernels/machine_rates.h"

namespace graft::kernels {

std::int64_t multiply_int8_avx512(std::int64_t rounds) {
  __m512i sums[12];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i codes = _mm512_set1_epi8(7);
  for (std::int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, codes, codes);
      __asm__ volatile("" : "+v"(sum));
    }
  return rounds * 12 * 64;
}

std::int64_t multiply_f32_avx512(std::int64_t rounds) {
  __m512 sums[12];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  const __m512 factor = _mm512_set1_ps(0.5F);
  for (std::int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm512_fmadd_ps(factor, factor, sum);
      __asm__ volatile("" : "+v"(sum));
    }
  return rounds * 12 * 16;
}

}  // namespace graft::kernels
