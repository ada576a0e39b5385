#pragma once

#include <cstdint>
#include <span>

#include "graft/nn/row_product.h"
#include "graft/pool.h"
#include "kernels/rows.h"
#include "kernels/scratch.h"

namespace graft {

/// Where a product's outputs go.
struct RowJob {
  const nn::RowProduct* product;
  float* out;           ///< [m][stride]
  std::int64_t stride;  ///< at least out_features()
};

/// Rows from which a call is cut into plain jobs of the pool rather than one that it may compute
/// again where a thread is late.
inline constexpr std::int64_t kManyRows = 17;

/// All `jobs` with the same x [m][stride], float32, as one job of the pool; m is at most
/// most_rows() of each. Outputs are rounded by `operations`. `memory` is the caller's, kept between
/// calls. Products may be read until pool.drain().
void multiply(std::span<const RowJob> jobs, const float* x, std::int64_t stride, std::int64_t m,
              const kernels::RowOperations& operations, kernels::Scratch& memory,
              const graft_pool& pool);

}  // namespace graft
