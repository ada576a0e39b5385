#include "kernels/gram_avx512.h"

namespace graft::kernels {
namespace {

struct Floats {
  using Word = float;
  using Lanes = __m512;
  static Lanes load(const float* values) { return _mm512_load_ps(values); }
  static Lanes broadcast(const float* value) { return _mm512_set1_ps(*value); }
  static __m512 add(__m512 sum, Lanes x, Lanes y) { return _mm512_fmadd_ps(x, y, sum); }
};

}  // namespace

void gram_tile_avx512(const float* left, const float* right, std::int64_t rows, float* tile) {
  add_tile<Floats>(left, right, rows, tile);
}

}  // namespace graft::kernels
