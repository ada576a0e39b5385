#include "kernels/gram_avx512.h"
#include "kernels/lanes_avx512bf16.h"

namespace graft::kernels {
namespace {

struct Pairs {
  using Word = std::uint32_t;
  using Lanes = __m512bh;
  static Lanes load(const Word* pairs) { return as_bf16(_mm512_load_si512(pairs)); }
  static Lanes broadcast(const Word* pair) { return kernels::broadcast(pair); }
  static __m512 add(__m512 sum, Lanes x, Lanes y) { return _mm512_dpbf16_ps(sum, x, y); }
};

}  // namespace

void gram_pair_tile_avx512bf16(const std::uint32_t* left, const std::uint32_t* right,
                               std::int64_t pairs, float* tile) {
  add_tile<Pairs>(left, right, pairs, tile);
}

}  // namespace graft::kernels
