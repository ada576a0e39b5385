#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/dequantize.h"
#include "kernels/four_bit.h"

// 4-bit blocks in the checkpoint's order (kernels/four_bit.h) on the current device.

namespace graft::bnb {

/// All `count` elements `x` of `type`: bytes to `packed` [ceil(count / 2)], one float a block to
/// `absmax`; the same bytes as quantize_blocks() on the CPU. `blocksize` is even, `x` aligned to 16
/// bytes. `not_finite`, which was 0, becomes 1 when a value is NaN or infinite.
cudaError_t quantize_blocks_cuda(const void* x, cuda::DenseType type, std::int64_t count,
                                 std::int64_t blocksize, QuantType quant, std::uint8_t* packed,
                                 float* absmax, int* not_finite, cudaStream_t stream);

/// All `count` elements to `out` of `type`, aligned to 16 bytes: table[code] * absmax[block] in
/// float32, rounded once. `table` [16] is on the device; `blocksize` is a multiple of 8, or covers
/// everything.
cudaError_t dequantize_blocks_cuda(const std::uint8_t* packed, const float* table,
                                   const float* absmax, std::int64_t blocksize, std::int64_t count,
                                   cuda::DenseType type, void* out, cudaStream_t stream);

/// absmax of double quantization again, as dequantize_nested() on the CPU: [count] floats. `map`
/// [256] and `nested_absmax` are on the device.
cudaError_t dequantize_nested_cuda(const std::uint8_t* codes, std::int64_t count, const float* map,
                                   const float* nested_absmax, std::int64_t nested_blocksize,
                                   float offset, float* absmax, cudaStream_t stream);

}  // namespace graft::bnb
