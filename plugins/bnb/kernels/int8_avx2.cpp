#include <immintrin.h>

#include "kernels/int8.h"

namespace graft::bnb {

std::int32_t dot_int8_avx2(const std::int8_t* a, const std::int8_t* b, std::int64_t count) {
  __m256i sums = _mm256_setzero_si256();
  std::int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    const __m256i left =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + k)));
    const __m256i right =
        _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + k)));
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(left, right));
  }
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four) + dot_int8_scalar(a + k, b + k, count - k);
}

}  // namespace graft::bnb
