#pragma once

#include <cstdint>

// The layout of quantized weights of 8 bits that the CUDA kernels multiply with: plain rows of
// codes [n][k], one an output, and for each group of inputs a 32-bit word [n][ceil(k / group)]: the
// scale in the lower half, the zero point (0 to 256) as a whole number in the upper one.

namespace graft::cuda {

inline constexpr std::int64_t kByteRun = 16;  ///< codes that a thread reads at a time

/// Whether these kernels take such a weight: k and groups are multiples of 16, or there is one.
constexpr bool fits_bytes(std::int64_t n, std::int64_t k, std::int64_t group) {
  return n > 0 && k > 0 && group > 0 && k % kByteRun == 0 && (group >= k || group % kByteRun == 0);
}

}  // namespace graft::cuda
