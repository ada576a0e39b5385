#include "kernels/dequantize.h"

#include "kernels/cpu_level.h"
#include "kernels/format.h"

namespace graft::gptq {

void dequantize_scalar(const Columns& c, float* out) {
  for (std::int64_t k = 0; k < c.inputs; ++k) {
    const std::int64_t group = static_cast<std::int64_t>(c.group[k]) * c.count;
    for (std::int64_t n = 0; n < c.count; ++n) {
      const auto code = static_cast<float>(field(c.qweight + n, c.stride, k, c.bits));
      out[k * c.count + n] = c.scales[group + n] * (code - c.zeros[group + n]);
    }
  }
}

Dequantize dequantize() {
#if defined(__x86_64__)
  if (kernels::cpu_level() >= kernels::CpuLevel::avx2) return &dequantize_avx2;
#endif
  return &dequantize_scalar;
}

}  // namespace graft::gptq
