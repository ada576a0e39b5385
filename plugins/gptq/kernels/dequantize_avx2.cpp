#include <immintrin.h>

#include "kernels/dequantize.h"

namespace graft::gptq {

void dequantize_avx2(const Columns& c, float* out) {
  const std::uint32_t mask = (1U << c.bits) - 1U;
  const __m256i masks = _mm256_set1_epi32(static_cast<int>(mask));
  for (std::int64_t k = 0; k < c.inputs; ++k) {
    const std::int64_t bit = k * c.bits;
    const int shift = static_cast<int>(bit % 32);
    const bool straddles = shift + c.bits > 32;
    const std::uint32_t* low = c.qweight + bit / 32 * c.stride;
    const std::uint32_t* high = straddles ? low + c.stride : low;
    const __m128i right = _mm_cvtsi32_si128(shift), left = _mm_cvtsi32_si128(32 - shift);
    const float* scales = c.scales + c.group[k] * c.count;
    const float* zeros = c.zeros + c.group[k] * c.count;
    float* row = out + k * c.count;
    std::int64_t n = 0;
    for (; n + 8 <= c.count; n += 8) {
      __m256i codes = _mm256_srl_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low + n)), right);
      if (straddles)
        codes = _mm256_or_si256(
            codes, _mm256_sll_epi32(
                       _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high + n)), left));
      const __m256 values = _mm256_cvtepi32_ps(_mm256_and_si256(codes, masks));
      _mm256_storeu_ps(row + n, _mm256_mul_ps(_mm256_loadu_ps(scales + n),
                                              _mm256_sub_ps(values, _mm256_loadu_ps(zeros + n))));
    }
    for (; n < c.count; ++n) {
      std::uint32_t code = low[n] >> shift;
      if (straddles) code |= high[n] << (32 - shift);
      row[n] = scales[n] * (static_cast<float>(code & mask) - zeros[n]);
    }
  }
}

}  // namespace graft::gptq
