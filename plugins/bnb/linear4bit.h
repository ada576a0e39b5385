#pragma once

#include "cuda/device_weight.h"
#include "graft/nn/row_linear.h"
#include "graft/nn/unary.h"
#include "kernels/panel_tensors.h"
#include "quant_state.h"
#include "settings.h"

namespace graft::bnb {

/// y = x W^T + b with W in 4-bit blocks; y has the dtype of x. Where blocks end with steps of eight
/// inputs, which is everywhere in practice, the weight is packed into panels and multiplied as
/// graft::activations() says; elsewhere it is dequantized for each call, in the settings' compute
/// dtype or float32 when x is float32.
class Linear4bit : public nn::Unary, public nn::RowLinear {
 public:
  /// Everything on meta.
  Linear4bit(const ModuleSpec& spec, at::ScalarType compute_dtype);
  ~Linear4bit() override;

  /// Takes a weight and its companions as a checkpoint has them.
  void fill(const Tensors& tensors);
  void fill(QuantizedWeight quantized, const at::Tensor& bias);

  using Unary::to;
  /// On a CUDA device the codes are as the kernels take them; the file's small tensors stay on the
  /// CPU.
  void to(torch::Device device, bool non_blocking = false) override;

  at::Tensor forward(const at::Tensor& x) override;
  /// On a CUDA device, of 4-bit weights.
  at::Tensor forward_segments(const at::Tensor& x, std::span<const Segment> segments) override;
  std::unique_ptr<nn::RowProduct> row_product(at::ScalarType dtype) const override;
  void describe(ModuleSpec& spec) const override;

  /// The weight and its companions in the checkpoint's layout, bit for bit.
  Tensors stored() const;
  /// [N, K] in the dtype of the weight before quantization, where the weight is.
  at::Tensor dequantize() const;

  /// [ceil(N * K / 2), 1]: the first bytes of the panels, or all of the checkpoint's.
  at::Tensor weight;
  at::Tensor bias;

 private:
  void take(Tensors stored, QuantState state, const at::Tensor& given_bias);
  /// The packed bytes of the checkpoint [ceil(N * K / 2)].
  at::Tensor bytes() const;
  /// float32, one a block.
  at::Tensor absmax() const;
  at::Tensor multiply_dequantized(const at::Tensor& x) const;

  std::int64_t in_features_, out_features_;
  at::ScalarType compute_dtype_;
  Tensors stored_;    ///< without what can be made again from the panels
  QuantState state_;  ///< with panels, without absmax
  kernels::PanelTensors panels_;
  at::ScalarType storage_ = at::kByte;
  std::vector<std::int64_t> storage_sizes_;
  bool plain_absmax_ = false;
  at::Tensor float_bias_;
  void to_cuda(const c10::Device& device);
  void to_cpu();
  cuda::DeviceWeight device_weight_;
  /// The panels, also of what is on a CUDA device; undefined: there are none.
  kernels::PanelTensors held() const;
};

}  // namespace graft::bnb
