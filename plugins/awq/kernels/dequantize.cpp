#include "kernels/dequantize.h"

#include "kernels/cpu_level.h"
#include "kernels/format.h"

namespace graft::awq {

void dequantize_scalar(const Columns& c, float* out) {
  for (std::int64_t k = 0; k < c.inputs; ++k) {
    const std::uint32_t* words = c.qweight + k * c.stride;
    const std::int64_t group = k / c.group_size * c.count;
    for (std::int64_t n = 0; n < c.count; ++n) {
      const auto code = static_cast<float>((words[n / 8] >> kGemmShift[n % 8]) & 15U);
      const float value = (code - c.zeros[group + n]) * c.scales[group + n];
      out[k * c.count + n] = c.offsets ? value + c.offsets[group + n] : value;
    }
  }
}

Dequantize dequantize() {
#if defined(__x86_64__)
  if (kernels::cpu_level() >= kernels::CpuLevel::avx2) return &dequantize_avx2;
#endif
  return &dequantize_scalar;
}

}  // namespace graft::awq
