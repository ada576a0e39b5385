#include <immintrin.h>

#include "kernels/lanes.h"
#include "kernels/rows.h"

namespace graft::kernels {
namespace {

struct Level {
  [[gnu::always_inline]] static Lanes fma(Lanes a, Lanes b, Lanes c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  [[gnu::always_inline]] static float sum(Lanes v) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  [[gnu::always_inline]] static Lanes widen_f16(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  [[gnu::always_inline]] static Lanes round_f16(Lanes v) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

}  // namespace
}  // namespace graft::kernels

#include "kernels/rows_lanes.h"

namespace graft::kernels {

const RowOperations& row_operations_avx512(ElementType type) { return operations_for(type); }

}  // namespace graft::kernels
