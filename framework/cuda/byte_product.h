#pragma once

#include "cuda/byte_layout.h"
#include "cuda/dequantize.h"

namespace graft::cuda {

/// A weight of 8 bits on a device, scale * (code - zero) by groups of inputs; borrowed memory,
/// codes aligned to 16 bytes.
struct ByteWeight {
  std::int64_t n = 0, k = 0;
  std::int64_t group = 0;               ///< inputs of a group; the last may have fewer
  const std::uint8_t* codes = nullptr;  ///< these and the words as byte_layout.h says
  const std::uint32_t* words = nullptr;
  Element element = Element::bf16;  ///< of the scales, and that it multiplies with
};

/// Rows up to which multiply_bytes() reads the codes; more are faster through a dense copy.
inline constexpr std::int64_t kMostByteRows = 16;

/// y = x W^T + bias: x [m][k] of the weight's element, rows `x_stride` elements apart (a multiple
/// of 8), aligned to 16 bytes; y [m][n] of it too, rows `y_stride` apart; `bias` float32 [n] or
/// null.
/// Sums are float32 in one order; a result is rounded once. Returns what the launch returned;
/// cudaErrorInvalidValue for arguments that do not fit. On the current device. Any thread.
struct ByteProductArgs {
  ByteWeight weight;
  std::int64_t m = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  const float* bias = nullptr;
};
cudaError_t multiply_bytes(const ByteProductArgs& args, cudaStream_t stream);

/// Outputs [first, first + count) as rows [count][k] of `type`: scale * (code - zero) in float32,
/// rounded once. `out` is aligned to 16 bytes. On the current device.
cudaError_t dequantize_bytes(const ByteWeight& weight, std::int64_t first, std::int64_t count,
                             DenseType type, void* out, cudaStream_t stream);

}  // namespace graft::cuda
