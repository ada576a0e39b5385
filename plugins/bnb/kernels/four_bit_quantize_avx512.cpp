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

/// The number of borders strictly below a value, by four comparisons in a heap of them.
struct HeapSearch {
  __m512 heap, root;

  explicit HeapSearch(const Thresholds& thresholds) {
    alignas(64) float values[16] = {};
    for (int node = 1; node < 16; ++node) {
      int depth = 0;
      while (node >> (depth + 1)) ++depth;
      const int width = 16 >> depth;  // of what lies below the node
      values[node] = thresholds.borders[(node - (1 << depth)) * width + width / 2 - 1];
    }
    heap = _mm512_load_ps(values);
    root = _mm512_set1_ps(values[1]);
  }

  /// Plus a multiple of 16.
  __m512i operator()(__m512 x, __m512 reciprocal) const {
    const __m512 value = _mm512_mul_ps(x, reciprocal);
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
};

/// The same where borders lie further apart than 31 equal buckets of [-1, 1] are wide: a value's
/// bucket tells the borders below it but for one, with which it is compared.
struct BucketSearch {
  __m512 borders_first, borders_second;
  __m512i counts_first, counts_second;
  bool usable = true;

  explicit BucketSearch(const Thresholds& thresholds) {
    alignas(64) float borders[32] = {};
    alignas(64) int counts[32] = {};
    for (int bucket = -15; bucket <= 15; ++bucket) {
      // A little wider than rounding makes it.
      const double low = (bucket - 0.501) / 15, high = (bucket + 0.501) / 15;
      int below = 0, inside = 0;
      for (const float border : thresholds.borders) {
        below += border < low;
        inside += border >= low && border <= high;
      }
      if (inside > 1) usable = false;
      counts[bucket & 31] = below;
      borders[bucket & 31] = below < 15 ? thresholds.borders[below] : 2.0F;
    }
    borders_first = _mm512_load_ps(borders);
    borders_second = _mm512_load_ps(borders + 16);
    counts_first = _mm512_load_si512(counts);
    counts_second = _mm512_load_si512(counts + 16);
  }

  __m512i operator()(__m512 x, __m512 reciprocal) const {
    const __m512 value = _mm512_mul_ps(x, reciprocal);
    const __m512i bucket = _mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(15)));
    const __m512 border = _mm512_permutex2var_ps(borders_first, bucket, borders_second);
    const __m512i count = _mm512_permutex2var_epi32(counts_first, bucket, counts_second);
    return _mm512_mask_add_epi32(count, _mm512_cmp_ps_mask(value, border, _CMP_GT_OQ), count,
                                 _mm512_set1_epi32(1));
  }
};

template <ElementType element, class Search>
std::uint32_t run(const Search& search, const void* x, std::int64_t blocksize,
                  const Thresholds& thresholds, std::int64_t blocks, std::uint8_t* packed,
                  float* absmax) {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(thresholds.codes.data()));
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
      const __m128i even = _mm512_cvtepi32_epi8(search(pairs.even, reciprocal));
      const __m128i odd = _mm512_cvtepi32_epi8(search(pairs.odd, reciprocal));
      const __m128i high = _mm_shuffle_epi8(codes, _mm_and_si128(even, fifteen));
      const __m128i low = _mm_shuffle_epi8(codes, _mm_and_si128(odd, fifteen));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + (begin + i) / 2),
                       _mm_or_si128(_mm_slli_epi16(high, 4), low));
    }
  }
  return most_of_all;
}

template <ElementType element>
std::uint32_t choose(const void* x, std::int64_t blocksize, const Thresholds& thresholds,
                     std::int64_t blocks, std::uint8_t* packed, float* absmax) {
  const BucketSearch search(thresholds);
  if (search.usable) return run<element>(search, x, blocksize, thresholds, blocks, packed, absmax);
  return run<element>(HeapSearch(thresholds), x, blocksize, thresholds, blocks, packed, absmax);
}

}  // namespace

std::uint32_t quantize_blocks_avx512(const void* x, ElementType element, std::int64_t blocksize,
                                     const Thresholds& thresholds, std::int64_t blocks,
                                     std::uint8_t* packed, float* absmax) {
  switch (element) {
    case ElementType::f32:
      return choose<ElementType::f32>(x, blocksize, thresholds, blocks, packed, absmax);
    case ElementType::bf16:
      return choose<ElementType::bf16>(x, blocksize, thresholds, blocks, packed, absmax);
    case ElementType::f16:
      return choose<ElementType::f16>(x, blocksize, thresholds, blocks, packed, absmax);
  }
  return 0;
}

}  // namespace graft::bnb
