#include <immintrin.h>

#include "kernels/row_int8.h"

namespace graft::kernels {
namespace {

using AliasedInt = int __attribute__((may_alias));

__m256 load8(const void* x, ElementType type, std::int64_t i) {
  if (type == ElementType::f32) return _mm256_loadu_ps(static_cast<const float*>(x) + i);
  const __m128i half =
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const std::uint16_t*>(x) + i));
  if (type == ElementType::f16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// sums + four products a lane of codes up to 255 and signed x.
__m256i dot(__m256i sums, __m256i codes, __m256i even_x, __m256i odd_x) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), even_x);
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), odd_x);
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

template <int rows>
void run_rows(const PanelShape& shape, const std::uint8_t* codes, const std::uint8_t* x,
              std::int64_t x_rows, const std::int32_t* negated_sums, std::int32_t* out,
              std::int64_t out_stride) {
  __m256i sums[rows][2];
  for (int r = 0; r < rows; ++r)
    sums[r][0] = sums[r][1] = _mm256_slli_epi32(_mm256_set1_epi32(negated_sums[r]), 7);
  for (std::int64_t s = 0; s < shape.steps; ++s, codes += 128, x += x_rows * kStep)
    for (int four = 0; four < 2; ++four) {
      const auto* line = reinterpret_cast<const __m256i*>(codes + 64 * four);
      const __m256i first = _mm256_load_si256(line), second = _mm256_load_si256(line + 1);
      for (int r = 0; r < rows; ++r) {
        const __m256i value =
            _mm256_set1_epi32(*reinterpret_cast<const AliasedInt*>(x + r * kStep + 4 * four));
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(value, 8), 8);
        const __m256i odd = _mm256_srai_epi16(value, 8);
        sums[r][0] = dot(sums[r][0], first, even, odd);
        sums[r][1] = dot(sums[r][1], second, even, odd);
      }
    }
  for (int r = 0; r < rows; ++r)
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * out_stride + 8 * half),
                          sums[r][half]);
}

}  // namespace

float scan_row_avx2(const void* x, ElementType type, std::int64_t k, float threshold, float* values,
                    std::uint8_t* columns) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  const __m256 limit = _mm256_set1_ps(threshold > 0 ? threshold : __builtin_inff());
  const bool any_limit = threshold > 0;
  __m256 most = _mm256_setzero_ps(), nan = most;
  std::int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    const __m256 value = _mm256_cvtph_ps(
        _mm256_cvtps_ph(load8(x, type, i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm256_storeu_ps(values + i, value);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    __m256 size = _mm256_and_ps(value, magnitude);
    if (any_limit) {
      const __m256 large = _mm256_cmp_ps(size, limit, _CMP_GE_OQ);
      if (const int mask = _mm256_movemask_ps(large); mask)
        for (int lane = 0; lane < 8; ++lane)
          if (mask >> lane & 1) columns[i + lane] = 0xFF;
      size = _mm256_andnot_ps(large, size);
    }
    most = _mm256_max_ps(most, size);
  }
  float lanes[8];
  _mm256_storeu_ps(lanes, most);
  float out = scan_row_scalar(static_cast<const char*>(x) + i * (type == ElementType::f32 ? 4 : 2),
                              type, k - i, threshold, values + i, columns + i);
  for (const float lane : lanes)
    if (lane > out) out = lane;
  return _mm256_movemask_ps(nan) || out != out ? __builtin_nanf("") : out;
}

std::int32_t quantize_row_avx2(const float* values, const std::uint8_t* columns, std::int64_t steps,
                               float scale, std::uint8_t* out, std::int64_t stride) {
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  const __m256 limit = _mm256_set1_ps(127.5F);
  __m256i sum = _mm256_setzero_si256();
  for (std::int64_t s = 0; s < steps; ++s) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(values + s * kStep), factor);
    const __m256i fits =
        _mm256_castps_si256(_mm256_cmp_ps(_mm256_and_ps(scaled, magnitude), limit, _CMP_LE_OQ));
    const __m256i marked = _mm256_cvtepi8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(columns + s * kStep)));
    const __m256i codes =
        _mm256_andnot_si256(marked, _mm256_and_si256(fits, _mm256_cvtps_epi32(scaled)));
    sum = _mm256_add_epi32(sum, codes);
    const __m256i words = _mm256_packs_epi32(codes, codes);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    _mm_storel_epi64(
        reinterpret_cast<__m128i*>(out + s * stride),
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
  }
  std::int32_t lanes[8], total = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
  for (const std::int32_t lane : lanes) total += lane;
  return -total;
}

void row_int8_tile_avx2(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                        const std::uint8_t* x, const std::int32_t* negated_sums, std::int64_t rows,
                        std::int32_t* sums) {
  const std::int64_t stride = panels * kPanelWidth;
  for (std::int64_t p = 0; p < panels; ++p) {
    std::int64_t r = 0;
    for (; r + 3 <= rows; r += 3)
      run_rows<3>(shape, codes + p * shape.panel_bytes, x + r * kStep, rows, negated_sums + r,
                  sums + r * stride + p * kPanelWidth, stride);
    for (; r < rows; ++r)
      run_rows<1>(shape, codes + p * shape.panel_bytes, x + r * kStep, rows, negated_sums + r,
                  sums + r * stride + p * kPanelWidth, stride);
  }
}

}  // namespace graft::kernels
