#include <immintrin.h>

#include "kernels/gram.h"

namespace graft::kernels {
namespace {

constexpr std::int64_t kLeft = 6, kRight = 16;  ///< sides of what is in registers, 12 of them
constexpr std::int64_t kRows = 128;             ///< of both panels that the first cache holds

void add_rows(const float* left, const float* right, std::int64_t rows, float* tile) {
  __m256 sum[kLeft][2];
#pragma GCC unroll 6
  for (int i = 0; i < kLeft; ++i) {
    sum[i][0] = _mm256_load_ps(tile + i * kGramColumns);
    sum[i][1] = _mm256_load_ps(tile + i * kGramColumns + 8);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const __m256 a = _mm256_load_ps(right), b = _mm256_load_ps(right + 8);
#pragma GCC unroll 6
    for (int i = 0; i < kLeft; ++i) {
      const __m256 x = _mm256_set1_ps(left[i]);
      sum[i][0] = _mm256_fmadd_ps(x, a, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(x, b, sum[i][1]);
    }
    left += kGramColumns;
    right += kGramColumns;
  }
#pragma GCC unroll 6
  for (int i = 0; i < kLeft; ++i) {
    _mm256_store_ps(tile + i * kGramColumns, sum[i][0]);
    _mm256_store_ps(tile + i * kGramColumns + 8, sum[i][1]);
  }
}

}  // namespace

void gram_tile_avx2(const float* left, const float* right, std::int64_t rows, float* tile) {
  for (std::int64_t r = 0; r < rows; r += kRows) {
    const std::int64_t some = rows - r < kRows ? rows - r : kRows;
    for (std::int64_t i = 0; i < kGramColumns; i += kLeft)
      for (std::int64_t j = 0; j < kGramColumns; j += kRight)
        add_rows(left + r * kGramColumns + i, right + r * kGramColumns + j, some,
                 tile + i * kGramColumns + j);
  }
}

}  // namespace graft::kernels
