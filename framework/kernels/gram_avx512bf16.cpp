#include <immintrin.h>

#include "kernels/gram.h"

namespace graft::kernels {
namespace {

using AliasedInt = int __attribute__((may_alias));

constexpr std::int64_t kLeft = 8;     ///< columns whose sums are in registers, 24 of them
constexpr std::int64_t kPairs = 128;  ///< of both panels that the first cache holds

__m512bh load(const std::uint32_t* pairs) { return (__m512bh)_mm512_load_si512(pairs); }

void add_pairs(const std::uint32_t* left, const std::uint32_t* right, std::int64_t pairs,
               float* tile) {
  __m512 sum[kLeft][3];
#pragma GCC unroll 8
  for (int i = 0; i < kLeft; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) sum[i][j] = _mm512_load_ps(tile + i * kGramColumns + j * 16);
  for (std::int64_t p = 0; p < pairs; ++p) {
    const __m512bh a = load(right), b = load(right + 16), c = load(right + 32);
#pragma GCC unroll 8
    for (int i = 0; i < kLeft; ++i) {
      const __m512bh x =
          (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const AliasedInt*>(left + i));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, a);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, b);
      sum[i][2] = _mm512_dpbf16_ps(sum[i][2], x, c);
    }
    left += kGramColumns;
    right += kGramColumns;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kLeft; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) _mm512_store_ps(tile + i * kGramColumns + j * 16, sum[i][j]);
}

}  // namespace

void gram_pair_tile_avx512bf16(const std::uint32_t* left, const std::uint32_t* right,
                               std::int64_t pairs, float* tile) {
  for (std::int64_t p = 0; p < pairs; p += kPairs) {
    const std::int64_t some = pairs - p < kPairs ? pairs - p : kPairs;
    for (std::int64_t i = 0; i < kGramColumns; i += kLeft)
      add_pairs(left + p * kGramColumns + i, right + p * kGramColumns, some,
                tile + i * kGramColumns);
  }
}

}  // namespace graft::kernels
