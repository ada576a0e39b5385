#include "kernels/gram.h"

#include <cmath>

namespace graft::kernels {

void gram_tile_scalar(const float* left, const float* right, std::int64_t rows, float* tile) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t i = 0; i < kGramColumns; ++i)
      for (std::int64_t j = 0; j < kGramColumns; ++j) {
        float& sum = tile[i * kGramColumns + j];
        sum = std::fma(left[r * kGramColumns + i], right[r * kGramColumns + j], sum);
      }
}

GramTile gram_tile([[maybe_unused]] CpuLevel level) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512) return gram_tile_avx512;
  if (level == CpuLevel::avx2) return gram_tile_avx2;
#endif
  return gram_tile_scalar;
}

GramPairTile gram_pair_tile([[maybe_unused]] CpuLevel level) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512 && cpu_has_bf16_dot()) return gram_pair_tile_avx512bf16;
#endif
  return nullptr;
}

}  // namespace graft::kernels
