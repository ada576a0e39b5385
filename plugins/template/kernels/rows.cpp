#include "rows.h"

#include <algorithm>
#include <cmath>

namespace org::example::rtn8 {

void multiply_rows(const RowsArgs& args, const graft_pool& pool) {
  graft::for_each_chunk(pool, args.n, [&](std::int64_t n) {
    const std::int8_t* codes = args.codes + n * args.k;
    for (std::int64_t m = 0; m < args.m; ++m) {
      const float* x = args.x + m * args.k;
      float sum = 0;
      for (std::int64_t k = 0; k < args.k; ++k) sum += x[k] * static_cast<float>(codes[k]);
      args.y[m * args.n + n] = sum * args.scales[n] + (args.bias ? args.bias[n] : 0.0F);
    }
  });
}

float quantize_row(const float* row, std::int64_t k, std::int8_t* codes) {
  float largest = 0;
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, std::abs(row[i]));
  const float step = largest / 127;
  for (std::int64_t i = 0; i < k; ++i) {
    const float steps = step > 0 ? std::round(row[i] / step) : 0.0F;
    codes[i] = static_cast<std::int8_t>(std::clamp(steps, -127.0F, 127.0F));
  }
  return step;
}

}  // namespace org::example::rtn8
