#include <immintrin.h>

#include "kernels/four_bit.h"

namespace graft::bnb {

void dequantize_blocks_avx512(const std::uint8_t* packed, const float* table, const float* absmax,
                              std::int64_t blocksize, std::int64_t begin, std::int64_t count,
                              float* out) {
  const __m512 codes = _mm512_loadu_ps(table);
  const __m128i low_nibbles = _mm_set1_epi8(15);
  const std::int64_t end = begin + count;
  std::int64_t i = begin;
  // A block has at least 32 elements, so 16 that start at a multiple of 16 lie in one block.
  const std::int64_t aligned = begin + (16 - begin % 16) % 16;
  if (const std::int64_t head = (aligned < end ? aligned : end) - i; head > 0) {
    dequantize_blocks_scalar(packed, table, absmax, blocksize, i, head, out);
    i += head;
  }
  for (; i + 16 <= end; i += 16) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2));
    const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_nibbles);
    const __m128i low = _mm_and_si128(bytes, low_nibbles);
    const __m512i index = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, low));
    const __m512 scale = _mm512_set1_ps(absmax[i / blocksize]);
    _mm512_storeu_ps(out + (i - begin), _mm512_mul_ps(_mm512_permutexvar_ps(index, codes), scale));
  }
  if (i < end)
    dequantize_blocks_scalar(packed, table, absmax, blocksize, i, end - i, out + (i - begin));
}

}  // namespace graft::bnb
