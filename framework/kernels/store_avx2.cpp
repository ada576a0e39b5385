#include <immintrin.h>

#include "kernels/linear.h"

namespace graft::kernels {
namespace {

/// Eight bfloat16, to the nearest, ties to even; NaN stays NaN.
__m128i to_bf16(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x88));
}

}  // namespace

void store_row_avx2(const float* row, const float* bias, std::int64_t count, ElementType type,
                    void* out) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m256 v = _mm256_loadu_ps(row + i);
    if (bias) v = _mm256_add_ps(v, _mm256_loadu_ps(bias + i));
    if (type == ElementType::f32) {
      _mm256_storeu_ps(static_cast<float*>(out) + i, v);
      continue;
    }
    const __m128i half = type == ElementType::bf16
                             ? to_bf16(v)
                             : _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<std::uint16_t*>(out) + i), half);
  }
  if (i < count)
    store_row_scalar(row + i, bias ? bias + i : nullptr, count - i, type,
                     static_cast<char*>(out) + i * (type == ElementType::f32 ? 4 : 2));
}

}  // namespace graft::kernels
