#include "kernels/rounding.h"

#include "kernels/rounding_strip.h"

namespace graft::kernels {

RoundStrip round_strip([[maybe_unused]] CpuLevel level) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512) return round_strip_avx512;
  if (level == CpuLevel::avx2) return round_strip_avx2;
#endif
  return round_strip_scalar;
}

float rounded_scale(float x, ScaleType type) { return round_scale(x, type); }

}  // namespace graft::kernels
