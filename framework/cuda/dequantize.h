#pragma once

#include "cuda/product.h"

namespace graft::cuda {

enum class DenseType { f16, bf16, f32 };

/// Outputs [first, first + count) of a packed weight as rows [count][k] of `type`: scale * (code -
/// zero) or scale * table[code] in float32, rounded once. `first` is a multiple of 64; `out` is
/// aligned to 16 bytes. On the current device.
cudaError_t dequantize(const Fragments& weight, std::int64_t first, std::int64_t count,
                       DenseType type, void* out, cudaStream_t stream);

}  // namespace graft::cuda
