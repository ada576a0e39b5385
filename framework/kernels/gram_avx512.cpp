#include <immintrin.h>

#include "kernels/gram.h"

namespace graft::kernels {
namespace {

constexpr std::int64_t kLeft = 8;     ///< columns whose sums are in registers, 24 of them
constexpr std::int64_t kRows = 128;   ///< of both panels that the first cache holds

void add_rows(const float* left, const float* right, std::int64_t rows, float* tile) {
  __m512 sum[kLeft][3];
#pragma GCC unroll 8
  for (int i = 0; i < kLeft; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) sum[i][j] = _mm512_load_ps(tile + i * kGramColumns + j * 16);
  for (std::int64_t r = 0; r < rows; ++r) {
    const __m512 a = _mm512_load_ps(right), b = _mm512_load_ps(right + 16),
                 c = _mm512_load_ps(right + 32);
#pragma GCC unroll 8
    for (int i = 0; i < kLeft; ++i) {
      const __m512 x = _mm512_set1_ps(left[i]);
      sum[i][0] = _mm512_fmadd_ps(x, a, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(x, b, sum[i][1]);
      sum[i][2] = _mm512_fmadd_ps(x, c, sum[i][2]);
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

void gram_tile_avx512(const float* left, const float* right, std::int64_t rows, float* tile) {
  for (std::int64_t r = 0; r < rows; r += kRows) {
    const std::int64_t some = rows - r < kRows ? rows - r : kRows;
    for (std::int64_t i = 0; i < kGramColumns; i += kLeft)
      add_rows(left + r * kGramColumns + i, right + r * kGramColumns, some,
               tile + i * kGramColumns);
  }
}

}  // namespace graft::kernels
