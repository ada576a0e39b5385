#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "graft/error.h"
#include "graft/nn/unary.h"
#include "kernels/panel_tensors.h"
#if GRAFT_HAS_CUDA
#include <ATen/ops/linear.h>

#include "cuda/byte_tensors.h"
#include "cuda/fragment_tensors.h"
#endif

namespace graft::cuda {

/// The weight of a quantized layer while it is on a CUDA device: packed where there is a kernel for
/// it, else a dense copy. Never defined in a build without CUDA.
class DeviceWeight {
 public:
  /// Rows of x that a weight multiplies, those after the rows of the part before.
  struct Part {
    const DeviceWeight* weight;
    at::Tensor bias;  ///< float32 [n] on the device, or undefined
    std::int64_t rows;
  };

#if GRAFT_HAS_CUDA
  bool defined() const { return packed_ || dense_.defined(); }
  bool is_packed() const { return packed_ != nullptr; }

  /// `panels`, for activations of `dtype`; `dequantize()` gives [n, k] where they do not fit.
  template <class Dequantize>
  void take(const kernels::PanelTensors& panels, at::ScalarType dtype, const c10::Device& device,
            const Dequantize& dequantize) {
    if (FragmentTensors::fits(panels))
      packed_ = std::make_unique<FragmentTensors>(panels, dtype, device);
    else if (ByteTensors::fits(panels))
      packed_ = std::make_unique<ByteTensors>(panels, dtype, device);
    else
      dense_ = dequantize().to(device);
  }
  void reset() {
    packed_.reset();
    dense_.reset();
  }

  /// The panels again, on the CPU; of a packed weight.
  kernels::PanelTensors panels() const { return packed_->panels(); }
  /// Memory of the codes as a tensor of such a type and shape, as a module shows it; of a packed
  /// weight.
  at::Tensor codes_as(const at::Tensor& like) const {
    return packed_->codes.view(like.scalar_type()).narrow(0, 0, like.numel()).view(like.sizes());
  }
  /// [n, k] on the device; `type` is of a packed weight.
  at::Tensor dequantized(at::ScalarType type) const {
    return is_packed() ? packed_->dense(type) : dense_;
  }
  /// y = x W^T + bias; `bias` float32 [n] on the device, or undefined.
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& bias) const {
    if (is_packed()) return packed_->multiply(x, bias);
    // Weights that a smaller type may not hold are float32.
    const auto type = dense_.scalar_type() == at::kFloat ? at::kFloat : x.scalar_type();
    return at::linear(x.to(type), dense_.to(type), bias.defined() ? bias.to(type) : bias)
        .to(x.scalar_type());
  }
  /// The same of several weights in one go, x [P, k] to [P, n]; undefined where there is no kernel
  /// for these together, or none that is faster than one after the other.
  static at::Tensor multiply(const at::Tensor& x, std::span<const Part> parts) {
    std::vector<FragmentTensors::Part> packed;
    for (const auto& part : parts) {
      const auto* weight = dynamic_cast<const FragmentTensors*>(part.weight->packed_.get());
      if (!weight) return {};
      packed.push_back({weight, part.bias, part.rows});
    }
    return FragmentTensors::multiply(x, packed);
  }

 private:
  std::unique_ptr<PackedTensors> packed_;
  at::Tensor dense_;
#else
  bool defined() const { return false; }
  bool is_packed() const { return false; }
  template <class Dequantize>
  void take(const kernels::PanelTensors&, at::ScalarType, const c10::Device& device,
            const Dequantize&) {
    throw Error(ErrorKind::usage, "this plugin was built without CUDA").found(quote(device.str()));
  }
  void reset() {}
  kernels::PanelTensors panels() const { return {}; }
  at::Tensor codes_as(const at::Tensor&) const { return {}; }
  at::Tensor dequantized(at::ScalarType) const { return {}; }
  at::Tensor multiply(const at::Tensor&, const at::Tensor&) const { return {}; }
  static at::Tensor multiply(const at::Tensor&, std::span<const Part>) { return {}; }
#endif
};

/// Unary::forward_segments of linear layers of one class with these members; `bias` as
/// DeviceWeight::Part has it.
template <class Linear>
at::Tensor multiply_segments(const at::Tensor& x, std::span<const nn::Unary::Segment> segments,
                             DeviceWeight Linear::*weight, at::Tensor Linear::*bias) {
  std::vector<DeviceWeight::Part> parts;
  for (const auto& [module, rows] : segments) {
    const auto* linear = dynamic_cast<const Linear*>(module);
    if (!linear || !(linear->*weight).is_packed()) return {};
    parts.push_back({&(linear->*weight), linear->*bias, rows});
  }
  return DeviceWeight::multiply(x, parts);
}

}  // namespace graft::cuda
