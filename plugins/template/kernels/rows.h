#pragma once

#include <cstdint>

#include "graft/pool.h"

// Kernels see no torch: raw pointers, sizes, and the pool that the caller hands them.
namespace org::example::rtn8 {

/// y[m, n] = scales[n] * sum over k of x[m, k] * codes[n, k] + bias[n]; row-major, in float32.
struct RowsArgs {
  const float* x = nullptr;            ///< [m, k]
  const std::int8_t* codes = nullptr;  ///< [n, k]
  const float* scales = nullptr;       ///< [n]
  const float* bias = nullptr;         ///< [n] or nullptr
  float* y = nullptr;                  ///< [m, n]
  std::int64_t m = 0, n = 0, k = 0;
};

/// Each element of y is summed by one thread in the order of k: the same bits for any number of
/// threads and rows.
void multiply_rows(const RowsArgs& args, const graft_pool& pool);

/// Rounds a row of k finite values to multiples of a step in [-127, 127] and gives the step;
/// 0 for a row of zeros.
float quantize_row(const float* row, std::int64_t k, std::int8_t* codes);

}  // namespace org::example::rtn8
