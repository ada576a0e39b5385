#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/dequantize.h"

namespace graft::bnb {

/// LLM.int8 on the current device, by the rules of kernels/row_int8.h: y = x W^T + bias with W int8
/// rows. k is a multiple of 16 below 2^17; rows of x and W are aligned to 16 bytes.
struct RowInt8Cuda {
  const std::int8_t* weight = nullptr;  ///< [n][k]
  const float* scales = nullptr;        ///< [n]: absmax of each output
  float threshold = 6;                  ///< |x| from here on leaves int8; 0: none does
  std::int64_t m = 0, n = 0, k = 0;
  cuda::DenseType type = cuda::DenseType::bf16;  ///< of x and y
  const void* x = nullptr;                       ///< [m][k]
  void* y = nullptr;                             ///< [m][n]
  const float* bias = nullptr;                   ///< [n] or null
  void* workspace = nullptr;                     ///< row_int8_workspace(m, k) bytes, aligned to 16
};

std::size_t row_int8_workspace(std::int64_t m, std::int64_t k);
cudaError_t multiply_rows_int8_cuda(const RowInt8Cuda& args, cudaStream_t stream);

}  // namespace graft::bnb
