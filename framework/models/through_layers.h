#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>

#include "graft/model.h"

namespace graft {

/// What `forward` makes of x, as the batch has it that layer number `layer` is run.
template <class Forward>
at::Tensor run_layer(const Batch& batch, std::size_t layer, const at::Tensor& x,
                     const Forward& forward) {
  return batch.around_layer ? batch.around_layer(layer, x, forward) : forward(x);
}

/// x [B, T, H] through all layers in order, each of which is given `rest` as well.
template <class Layers, class... Rest>
at::Tensor through_layers(const Batch& batch, Layers& layers, at::Tensor x, const Rest&... rest) {
  for (std::size_t i = 0; i < layers.size(); ++i)
    x = run_layer(batch, i, x,
                  [&](const at::Tensor& input) { return layers[i].forward(input, rest...); });
  return x;
}

}  // namespace graft
