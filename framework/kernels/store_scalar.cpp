#include <cstring>

#include "kernels/linear.h"

namespace graft::kernels {
namespace {

std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

}  // namespace

void store_row_scalar(const float* row, const float* bias, std::int64_t count, ElementType type,
                      void* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = bias ? row[i] + bias[i] : row[i];
    if (type == ElementType::f32) {
      static_cast<float*>(out)[i] = value;
    } else if (type == ElementType::bf16) {
      static_cast<std::uint16_t*>(out)[i] = to_bf16(value);
    } else {
      const auto half = static_cast<_Float16>(value);
      std::memcpy(static_cast<std::uint16_t*>(out) + i, &half, 2);
    }
  }
}

}  // namespace graft::kernels
