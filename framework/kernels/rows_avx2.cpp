#include <immintrin.h>

#include "kernels/lanes.h"
#include "kernels/rows.h"

namespace graft::kernels {
namespace {

/// The two registers of 16 lanes.
struct Halves {
  __m256 low, high;
};

[[gnu::always_inline]] inline Halves halves(const Lanes& v) {
  Halves out;
  __builtin_memcpy(&out, &v, sizeof(out));
  return out;
}

[[gnu::always_inline]] inline Lanes whole(Halves v) {
  Lanes out;
  __builtin_memcpy(&out, &v, sizeof(out));
  return out;
}

struct Level {
  [[gnu::always_inline]] static Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    const Halves x = halves(a), y = halves(b), z = halves(c);
    return whole({_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)});
  }
  [[gnu::always_inline]] static float sum(const Lanes& v) {
    const Halves both = halves(v);
    const __m256 eight = _mm256_add_ps(both.low, both.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  [[gnu::always_inline]] static Lanes widen_f16(const std::uint16_t* from) {
    const auto* at = reinterpret_cast<const __m128i*>(from);
    return whole({_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))});
  }
  [[gnu::always_inline]] static Lanes round_f16(const Lanes& v) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const Halves both = halves(v);
    return whole({_mm256_cvtph_ps(_mm256_cvtps_ph(both.low, nearest)),
                  _mm256_cvtph_ps(_mm256_cvtps_ph(both.high, nearest))});
  }
};

}  // namespace
}  // namespace graft::kernels

#include "kernels/rows_lanes.h"

namespace graft::kernels {

const RowOperations& row_operations_avx2(ElementType type) { return operations_for(type); }

}  // namespace graft::kernels
