#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "graft/export.h"

namespace graft {

/// Batches [first, last) of all there are: a node of the binary tree in whose order their sums are
/// added. The tree knows the number of batches and nothing of who holds them.
struct BatchRange {
  std::int64_t first = 0, last = 0;
  bool operator==(const BatchRange&) const = default;
};

/// The largest nodes that lie in `held`, in their order, of a tree over `batches`.
GRAFT_API std::vector<BatchRange> nodes_of(std::int64_t batches, const BatchRange& held);

/// How many tiles a sum has that is K wide.
GRAFT_API std::int64_t moment_tiles(std::int64_t k);

/// Sum of x x^T over the rows of `inputs` [.., K], which are the batches of `node`; undefined ones
/// have no rows. Gives the tiles on and above the diagonal, [tiles, 48, 48] float32 (kernels/gram.h),
/// those of a row of tiles after those of the row above, or undefined for no rows at all. Runs on
/// the pool; the same for any number of threads.
GRAFT_API at::Tensor sum_of_products(const std::vector<at::Tensor>& inputs, const BatchRange& node);

/// Adds the sums of nodes that together hold all batches, in place, and divides by `rows`: the mean
/// of x x^T, [K, K] float32, symmetric. Undefined when all are.
GRAFT_API at::Tensor second_moment(std::int64_t k, std::int64_t batches,
                                   const std::vector<BatchRange>& nodes,
                                   std::vector<at::Tensor> sums, std::int64_t rows);

/// The same of inputs that are all here, one for each batch.
GRAFT_API at::Tensor second_moment(const std::vector<at::Tensor>& inputs);

}  // namespace graft
