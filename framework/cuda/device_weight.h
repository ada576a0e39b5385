#pragma once

#include <ATen/core/Tensor.h>

#include "graft/error.h"
#include "kernels/panel_tensors.h"
#if GRAFT_HAS_CUDA
#include <ATen/ops/linear.h>

#include "cuda/fragment_tensors.h"
#endif

namespace graft::cuda {

/// The weight of a 4-bit layer while it is on a CUDA device: packed where there is a kernel for it,
/// else a dense copy. Never defined in a build without CUDA.
class DeviceWeight {
 public:
#if GRAFT_HAS_CUDA
  bool defined() const { return packed_.defined() || dense_.defined(); }
  bool is_packed() const { return packed_.defined(); }

  /// `panels`, for activations of `dtype`; `dequantize()` gives [n, k] where they do not fit.
  template <class Dequantize>
  void take(const kernels::PanelTensors& panels, at::ScalarType dtype, const c10::Device& device,
            const Dequantize& dequantize) {
    if (FragmentTensors::fits(panels))
      packed_ = FragmentTensors(panels, dtype, device);
    else
      dense_ = dequantize().to(device);
  }
  void reset() {
    packed_ = {};
    dense_.reset();
  }

  /// The panels again, on the CPU; of a packed weight.
  kernels::PanelTensors panels() const { return packed_.panels(); }
  /// Memory of the codes as a tensor of such a type and shape, as a module shows it; of a packed
  /// weight.
  at::Tensor codes_as(const at::Tensor& like) const {
    return packed_.codes.view(like.scalar_type()).narrow(0, 0, like.numel()).view(like.sizes());
  }
  /// [n, k] on the device; `type` is of a packed weight.
  at::Tensor dequantized(at::ScalarType type) const {
    return is_packed() ? packed_.dense(type) : dense_;
  }
  /// y = x W^T + bias; `bias` float32 [n] on the device, or undefined.
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& bias) const {
    if (is_packed()) return packed_.multiply(x, bias);
    return at::linear(x, dense_.to(x.scalar_type()),
                      bias.defined() ? bias.to(x.scalar_type()) : bias);
  }

 private:
  FragmentTensors packed_;
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
#endif
};

}  // namespace graft::cuda
