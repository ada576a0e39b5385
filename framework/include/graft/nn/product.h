#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdint>

#include "graft/export.h"

namespace graft::nn {

/// Runs f(part) for 0 .. parts - 1 on LibTorch's threads. LibTorch's own products inside take one
/// thread each. With several to take, MKL multiplies 5 to 11 rows of float32 in another order on
/// CPUs that are not Intel's, and the number of threads would show in the result.
template <class Function>
void for_each_part(std::int64_t parts, const Function& f) {
  // One part alone would not run in a parallel region.
  at::parallel_for(0, std::max<std::int64_t>(parts, 2), 1,
                   [&](std::int64_t begin, std::int64_t end) {
                     const c10::InferenceMode guard;
                     for (auto part = begin; part < std::min(end, parts); ++part) f(part);
                   });
}

/// at::linear: x [..., K] times `weight` [N, K] transposed, plus `bias` [N] or undefined. Of few
/// rows of float32 on the CPU it has the same bits for any number of threads, too.
GRAFT_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias = {});

}  // namespace graft::nn
