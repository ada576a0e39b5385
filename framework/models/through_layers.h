#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <tuple>
#include <utility>

#include "graft/model.h"

namespace graft {

/// What `forward` makes of x, as the batch has it that layer number `layer` is run.
template <class Forward>
at::Tensor run_layer(const Batch& batch, std::size_t layer, const at::Tensor& x,
                     const Forward& forward) {
  return batch.around_layer ? batch.around_layer(layer, x, forward) : forward(x);
}

/// What a layer is given beside x, on another device; structures have a function of this name.
inline at::Tensor on_device(const at::Tensor& tensor, const at::Device& device) {
  return tensor.defined() ? tensor.to(device) : tensor;
}

inline std::pair<at::Tensor, at::Tensor> on_device(const std::pair<at::Tensor, at::Tensor>& both,
                                                   const at::Device& device) {
  return {on_device(both.first, device), on_device(both.second, device)};
}

/// x [B, T, H] through all layers in order, each of which is given `rest` as well, where it runs.
template <class Layers, class... Rest>
at::Tensor through_layers(const Batch& batch, Layers& layers, at::Tensor x, const Rest&... rest) {
  std::optional<at::Device> device;
  std::tuple<Rest...> there(rest...);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    auto& layer = layers[i];
    if (layer.execution_device() && layer.execution_device() != device) {
      device = layer.execution_device();
      there = {on_device(rest, *device)...};
    }
    x = run_layer(batch, i, x, [&](const at::Tensor& input) {
      return std::apply(
          [&](const Rest&... given) {
            return layer.forward(device ? input.to(*device) : input, given...);
          },
          there);
    });
  }
  return x;
}

}  // namespace graft
