#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

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

}  // namespace graft::bnb
