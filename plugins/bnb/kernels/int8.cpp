#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu_level.h"

namespace graft::bnb {

float quantize_row(const float* x, std::int64_t count, std::int8_t* codes) {
  float absmax = 0;
  for (std::int64_t k = 0; k < count; ++k) absmax = std::max(absmax, std::abs(x[k]));
  if (absmax == 0) {
    std::fill(codes, codes + count, std::int8_t{0});
    return 0;
  }
  const float scale = 1.0F / absmax * 127.0F;
  for (std::int64_t k = 0; k < count; ++k)
    codes[k] = static_cast<std::int8_t>(std::nearbyint(x[k] * scale));
  return absmax;
}

std::int32_t dot_int8_scalar(const std::int8_t* a, const std::int8_t* b, std::int64_t count) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < count; ++k)
    sum += static_cast<std::int32_t>(a[k]) * static_cast<std::int32_t>(b[k]);
  return sum;
}

DotInt8 dot_int8() {
#if defined(__x86_64__)
  if (kernels::cpu_level() >= kernels::CpuLevel::avx2) return &dot_int8_avx2;
#endif
  return &dot_int8_scalar;
}

}  // namespace graft::bnb
