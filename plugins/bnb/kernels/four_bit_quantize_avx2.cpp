#include <immintrin.h>

#include "kernels/four_bit.h"

namespace graft::bnb {
namespace {

using kernels::ElementType;

/// Elements of even and of odd places among 16, as float32: what goes to high and low nibbles.
struct Pairs {
  __m256 even, odd;
};

Pairs load(const void* x, ElementType element, std::int64_t i) {
  if (element == ElementType::bf16) {
    const __m256i both = _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(static_cast<const std::uint16_t*>(x) + i));
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(both, upper))};
  }
  __m256 first, second;
  if (element == ElementType::f16) {
    const auto* half = static_cast<const std::uint16_t*>(x) + i;
    first = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
    second = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + 8)));
  } else {
    first = _mm256_loadu_ps(static_cast<const float*>(x) + i);
    second = _mm256_loadu_ps(static_cast<const float*>(x) + i + 8);
  }
  // 0 2 8 10 4 6 12 14, then put in order.
  const auto in_order = [](__m256 v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xD8));
  };
  return {in_order(_mm256_shuffle_ps(first, second, 0x88)),
          in_order(_mm256_shuffle_ps(first, second, 0xDD))};
}

/// The number of borders strictly below each value, by four comparisons in a heap of them.
__m256i search(__m256 value, __m256 upper_heap, __m256 lower_heap) {
  __m256i node = _mm256_set1_epi32(1);
#pragma GCC unroll 4
  for (int level = 0; level < 4; ++level) {
    const __m256 border = _mm256_permutevar8x32_ps(level < 3 ? upper_heap : lower_heap, node);
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(value, border, _CMP_GT_OQ));
    node = _mm256_sub_epi32(_mm256_add_epi32(node, node), above);
  }
  return _mm256_and_si256(node, _mm256_set1_epi32(15));
}

/// Eight numbers below 16 as bytes.
__m128i to_bytes(__m256i v) {
  const __m256i words = _mm256_packus_epi32(v, v);
  const __m256i bytes = _mm256_packus_epi16(words, words);
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}

}  // namespace

std::uint32_t quantize_blocks_avx2(const void* x, ElementType element, std::int64_t blocksize,
                                   const Thresholds& thresholds, std::int64_t blocks,
                                   std::uint8_t* packed, float* absmax) {
  alignas(64) float heap_values[16] = {};
  for (int node = 1; node < 16; ++node) {
    int depth = 0;
    while (node >> (depth + 1)) ++depth;
    const int width = 16 >> depth;  // of what lies below the node
    heap_values[node] = thresholds.borders[(node - (1 << depth)) * width + width / 2 - 1];
  }
  const __m256 upper_heap = _mm256_load_ps(heap_values);
  const __m256 lower_heap = _mm256_load_ps(heap_values + 8);
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(thresholds.codes.data()));
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  std::uint32_t most_of_all = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * blocksize;
    __m256i most = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < blocksize; i += 16) {
      const Pairs pairs = load(x, element, begin + i);
      most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(pairs.even), magnitude));
      most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(pairs.odd), magnitude));
    }
    std::uint32_t lanes[8], bits = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), most);
    for (const std::uint32_t lane : lanes) bits = lane > bits ? lane : bits;
    most_of_all = bits > most_of_all ? bits : most_of_all;
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    absmax[block] = largest;
    const float divisor = largest > 1e-38F ? largest : 1e-38F;
    const __m256 reciprocal = _mm256_set1_ps(1.0F / divisor);
    for (std::int64_t i = 0; i < blocksize; i += 16) {
      const Pairs pairs = load(x, element, begin + i);
      const __m128i even =
          to_bytes(search(_mm256_mul_ps(pairs.even, reciprocal), upper_heap, lower_heap));
      const __m128i odd =
          to_bytes(search(_mm256_mul_ps(pairs.odd, reciprocal), upper_heap, lower_heap));
      const __m128i high = _mm_shuffle_epi8(codes, even), low = _mm_shuffle_epi8(codes, odd);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + (begin + i) / 2),
                       _mm_or_si128(_mm_slli_epi16(high, 4), low));
    }
  }
  return most_of_all;
}

}  // namespace graft::bnb
