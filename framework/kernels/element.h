#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/panels.h"

namespace graft::kernels {

/// Number `i` of an array of `type`, widened, which is exact. Not for files of a CPU level.
inline float element_at(const void* values, ElementType type, std::int64_t i) {
  if (type == ElementType::f32) return static_cast<const float*>(values)[i];
  const std::uint16_t half = static_cast<const std::uint16_t*>(values)[i];
  if (type == ElementType::f16) {
    _Float16 value;
    std::memcpy(&value, &half, 2);
    return static_cast<float>(value);
  }
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace graft::kernels
