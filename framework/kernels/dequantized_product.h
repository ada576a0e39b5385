#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "graft/nn/product.h"
#include "kernels/panels.h"

// Products with a weight that is decoded a slab of outputs at a time, for what panels cannot hold
// and where the rounded weight itself is asked for. `columns(first, count)` gives the transposed
// weight [inputs, count] of outputs from `first` on, which is a multiple of a panel's width.

namespace graft::kernels {

/// Outputs of a slab: whole panels, about 2^17 weights, so that a thread's slab stays in its
/// second-level cache. The same for every number of threads, so that results are too.
inline std::int64_t slab_outputs(std::int64_t inputs, std::int64_t outputs) {
  constexpr std::int64_t kWeights = 1 << 17;
  const std::int64_t wanted = std::max<std::int64_t>(kWeights / inputs, 1);
  return std::min((wanted + kPanelWidth - 1) / kPanelWidth * kPanelWidth, outputs);
}

/// x [..., inputs] times the weight, computed in `compute`, plus `bias` [outputs] float32 or
/// undefined; in the type of x.
template <class Columns>
at::Tensor multiply_dequantized(const at::Tensor& x, std::int64_t inputs, std::int64_t outputs,
                                const at::Tensor& bias, at::ScalarType compute,
                                const Columns& columns) {
  const auto input = x.reshape({-1, inputs}).to(compute);
  auto y = at::empty({input.size(0), outputs}, input.options());
  const std::int64_t width = slab_outputs(inputs, outputs);
  nn::for_each_part((outputs + width - 1) / width, [&](std::int64_t slab) {
    const std::int64_t first = slab * width, count = std::min(width, outputs - first);
    y.narrow(1, first, count).copy_(at::mm(input, columns(first, count).to(compute)));
  });
  if (bias.defined()) y = y.to(at::kFloat) + bias;
  auto sizes = x.sizes().vec();
  sizes.back() = outputs;
  return y.to(x.scalar_type()).view(sizes);
}

/// The whole weight [outputs, inputs] in `dtype`.
template <class Columns>
at::Tensor dequantized(std::int64_t inputs, std::int64_t outputs, at::ScalarType dtype,
                       const Columns& columns) {
  auto out = at::empty({outputs, inputs}, dtype);
  const std::int64_t width = slab_outputs(inputs, outputs);
  for (std::int64_t first = 0; first < outputs; first += width) {
    const std::int64_t count = std::min(width, outputs - first);
    out.narrow(0, first, count).copy_(columns(first, count).t());
  }
  return out;
}

}  // namespace graft::kernels
