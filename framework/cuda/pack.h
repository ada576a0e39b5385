#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/fragments.h"

namespace graft::cuda {

/// Codes of 4 bits, words [k / 8][n] with the first input in the lowest bits (GPTQ's layout), to
/// the order of fragments and back; both on the current device. `codes` has shape.code_bytes.
cudaError_t pack_codes(const FragmentShape& shape, const std::uint32_t* words, void* codes,
                       cudaStream_t stream);
cudaError_t unpack_codes(const FragmentShape& shape, const void* codes, std::uint32_t* words,
                         cudaStream_t stream);

}  // namespace graft::cuda
