#include <immintrin.h>

#include "kernels/machine_rates.h"

namespace graft::kernels {

std::int64_t multiply_bf16_avx512bf16(std::int64_t rounds) {
  __m512 sums[12];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  const __m512 half = _mm512_set1_ps(0.5F);
  const __m512bh factor = _mm512_cvtne2ps_pbh(half, half);
  for (std::int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, factor, factor);
      __asm__ volatile("" : "+v"(sum));
    }
  return rounds * 12 * 32;
}

}  // namespace graft::kernels
