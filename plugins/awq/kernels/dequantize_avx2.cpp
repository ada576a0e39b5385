#include <immintrin.h>

#include "kernels/dequantize.h"

namespace graft::awq {

void dequantize_avx2(const Columns& c, float* out) {
  const __m256i shifts = _mm256_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28);  // kGemmShift
  const __m256i mask = _mm256_set1_epi32(15);
  for (std::int64_t k = 0; k < c.inputs; ++k) {
    const std::uint32_t* words = c.qweight + k * c.stride;
    const std::int64_t group = k / c.group_size * c.count;
    float* row = out + k * c.count;
    for (std::int64_t n = 0; n < c.count; n += 8) {
      const __m256i codes = _mm256_and_si256(
          _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(words[n / 8])), shifts), mask);
      __m256 value = _mm256_mul_ps(
          _mm256_sub_ps(_mm256_cvtepi32_ps(codes), _mm256_loadu_ps(c.zeros + group + n)),
          _mm256_loadu_ps(c.scales + group + n));
      if (c.offsets) value = _mm256_add_ps(value, _mm256_loadu_ps(c.offsets + group + n));
      _mm256_storeu_ps(row + n, value);
    }
  }
}

}  // namespace graft::awq
