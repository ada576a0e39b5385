#include <immintrin.h>

#include "kernels/four_bit.h"

namespace graft::bnb {
namespace {

using kernels::ElementType;

/// Elements of even and of odd places among 32, as float32: what goes to high and low nibbles.
struct Pairs {
  __m512 even, odd;
};

template <ElementType element>
Pairs load(const void* x, std::int64_t i) {
  if constexpr (element == ElementType::bf16) {
    const __m512i both = _mm512_loadu_si512(static_cast<const std::uint16_t*>(x) + i);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(both, upper))};
  } else {
    __m512 first, second;
    if constexpr (element == ElementType::f16) {
      const auto* half = static_cast<const std::uint16_t*>(x) + i;
      first = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
      second = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + 16)));
    } else {
      first = _mm512_loadu_ps(static_cast<const float*>(x) + i);
      second = _mm512_loadu_ps(static_cast<const float*>(x) + i + 16);
    }
    const __m512i evens =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(first, evens, second),
            _mm512_permutex2var_ps(first, odds, second)};
  }
}

/// 16 plus the number of borders strictly below each value, by four comparisons in a heap of them.
__m512i search(__m512 value, __m512 heap, __m512 root) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i node = _mm512_set1_epi32(2);
  node = _mm512_mask_add_epi32(node, _mm512_cmp_ps_mask(value, root, _CMP_GT_OQ), node, one);
#pragma GCC unroll 3
  for (int level = 0; level < 3; ++level) {
    const __mmask16 above =
        _mm512_cmp_ps_mask(value, _mm512_permutexvar_ps(node, heap), _CMP_GT_OQ);
    node = _mm512_add_epi32(node, node);
    node = _mm512_mask_add_epi32(node, above, node, one);
  }
  return node;
}

template <ElementType element>
std::uint32_t run(const void* x, std::int64_t blocksize, const Thresholds& thresholds,
                  std::int64_t blocks, std::uint8_t* packed, float* absmax) {
  alignas(64) float heap_values[16] = {};
  for (int node = 1; node < 16; ++node) {
    int depth = 0;
    while (node >> (depth + 1)) ++depth;
    const int width = 16 >> depth;  // of what lies below the node
    heap_values[node] = thresholds.borders[(node - (1 << depth)) * width + width / 2 - 1];
  }
  const __m512 heap = _mm512_load_ps(heap_values), root = _mm512_set1_ps(heap_values[1]);
  const __m128i codes =
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(thresholds.codes.data()));
  const __m128i fifteen = _mm_set1_epi8(15);
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  std::uint32_t most_of_all = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * blocksize;
    __m512i most = _mm512_setzero_si512();
    for (std::int64_t i = 0; i < blocksize; i += 32) {
      const Pairs pairs = load<element>(x, begin + i);
      most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(pairs.even), magnitude));
      most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(pairs.odd), magnitude));
    }
    const auto bits = static_cast<std::uint32_t>(_mm512_reduce_max_epi32(most));
    most_of_all = bits > most_of_all ? bits : most_of_all;
    float largest;
    __builtin_memcpy(&largest, &bits, 4);
    absmax[block] = largest;
    const float divisor = largest > 1e-38F ? largest : 1e-38F;
    const __m512 reciprocal = _mm512_set1_ps(1.0F / divisor);
    for (std::int64_t i = 0; i < blocksize; i += 32) {
      const Pairs pairs = load<element>(x, begin + i);
      const __m128i even = _mm512_cvtepi32_epi8(
          search(_mm512_mul_ps(pairs.even, reciprocal), heap, root));
      const __m128i odd = _mm512_cvtepi32_epi8(
          search(_mm512_mul_ps(pairs.odd, reciprocal), heap, root));
      const __m128i high = _mm_shuffle_epi8(codes, _mm_and_si128(even, fifteen));
      const __m128i low = _mm_shuffle_epi8(codes, _mm_and_si128(odd, fifteen));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + (begin + i) / 2),
                       _mm_or_si128(_mm_slli_epi16(high, 4), low));
    }
  }
  return most_of_all;
}

}  // namespace

std::uint32_t quantize_blocks_avx512(const void* x, ElementType element, std::int64_t blocksize,
                                     const Thresholds& thresholds, std::int64_t blocks,
                                     std::uint8_t* packed, float* absmax) {
  switch (element) {
    case ElementType::f32:
      return run<ElementType::f32>(x, blocksize, thresholds, blocks, packed, absmax);
    case ElementType::bf16:
      return run<ElementType::bf16>(x, blocksize, thresholds, blocks, packed, absmax);
    case ElementType::f16:
      return run<ElementType::f16>(x, blocksize, thresholds, blocks, packed, absmax);
  }
  return 0;
}

}  // namespace graft::bnb
