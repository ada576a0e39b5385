#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/element.h"
#include "kernels/row_int8.h"

namespace graft::kernels {
float scan_row_scalar(const void* x, ElementType type, std::int64_t k, float threshold,
                      float* values, std::uint8_t* columns) {
  float most = 0;
  bool nan = false;
  for (std::int64_t i = 0; i < k; ++i) {
    const float value = static_cast<float>(static_cast<_Float16>(element_at(x, type, i)));
    values[i] = value;
    const float magnitude = std::abs(value);
    nan |= std::isnan(value);
    if (threshold > 0 && magnitude >= threshold)
      columns[i] = 0xFF;
    else
      most = std::max(most, magnitude);
  }
  return nan ? std::numeric_limits<float>::quiet_NaN() : most;
}

std::int32_t quantize_row_scalar(const float* values, const std::uint8_t* columns,
                                 std::int64_t steps, float scale, std::uint8_t* out,
                                 std::int64_t stride) {
  std::int32_t sum = 0;
  for (std::int64_t s = 0; s < steps; ++s)
    for (std::int64_t i = 0; i < kStep; ++i) {
      const std::int64_t at = s * kStep + i;
      // Infinities that no threshold takes out and NaN have no integer; the row's scale is NaN
      // then.
      const float scaled = values[at] * scale;
      const std::int32_t code = columns[at] || !(std::abs(scaled) <= 127.5F)
                                    ? 0
                                    : static_cast<std::int32_t>(std::nearbyint(scaled));
      out[s * stride + i] = static_cast<std::uint8_t>(code);
      sum += code;
    }
  return -sum;
}

void row_int8_tile_scalar(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                          const std::uint8_t* x, const std::int32_t* negated_sums,
                          std::int64_t rows, std::int32_t* sums) {
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t p = 0; p < panels; ++p)
      for (std::int64_t j = 0; j < kPanelWidth; ++j) {
        // Unsigned, for the sum may pass 2^31 on its way.
        auto sum = static_cast<std::uint32_t>(negated_sums[r]) * 128U;
        for (std::int64_t s = 0; s < shape.steps; ++s)
          for (std::int64_t i = 0; i < kStep; ++i) {
            const std::uint32_t code =
                codes[p * shape.panel_bytes + s * 128 + i / 4 * 64 + 4 * j + i % 4];
            const auto value = static_cast<std::int8_t>(x[(s * rows + r) * kStep + i]);
            sum += code * static_cast<std::uint32_t>(static_cast<std::int32_t>(value));
          }
        sums[r * panels * kPanelWidth + p * kPanelWidth + j] = static_cast<std::int32_t>(sum);
      }
}

}  // namespace graft::kernels
