#pragma once

#include <immintrin.h>

#include "kernels/gram.h"

// What both AVX-512 levels of gram_tile share; include it in their files alone.

namespace graft::kernels {
namespace {

constexpr std::int64_t kLeft = 8;      ///< columns whose sums are in registers, 24 of them
constexpr std::int64_t kHeight = 128;  ///< words of both panels that the first cache holds

/// Adds the products of kLeft columns and all of the other panel. Values has `Word`, what one column
/// of a panel is at one height, and `Lanes`, 16 of them; `load` and `broadcast` make these, and `add`
/// adds the products of two to 16 sums.
template <class Values>
void add_words(const typename Values::Word* left, const typename Values::Word* right,
               std::int64_t height, float* tile) {
  __m512 sum[kLeft][3];
#pragma GCC unroll 8
  for (int i = 0; i < kLeft; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) sum[i][j] = _mm512_load_ps(tile + i * kGramColumns + j * 16);
  for (std::int64_t h = 0; h < height; ++h) {
    const typename Values::Lanes a = Values::load(right), b = Values::load(right + 16),
                                 c = Values::load(right + 32);
#pragma GCC unroll 8
    for (int i = 0; i < kLeft; ++i) {
      const typename Values::Lanes x = Values::broadcast(left + i);
      sum[i][0] = Values::add(sum[i][0], x, a);
      sum[i][1] = Values::add(sum[i][1], x, b);
      sum[i][2] = Values::add(sum[i][2], x, c);
    }
    left += kGramColumns;
    right += kGramColumns;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kLeft; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) _mm512_store_ps(tile + i * kGramColumns + j * 16, sum[i][j]);
}

template <class Values>
void add_tile(const typename Values::Word* left, const typename Values::Word* right,
              std::int64_t height, float* tile) {
  for (std::int64_t h = 0; h < height; h += kHeight) {
    const std::int64_t some = height - h < kHeight ? height - h : kHeight;
    for (std::int64_t i = 0; i < kGramColumns; i += kLeft)
      add_words<Values>(left + h * kGramColumns + i, right + h * kGramColumns, some,
                        tile + i * kGramColumns);
  }
}

}  // namespace
}  // namespace graft::kernels
