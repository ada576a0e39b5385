#pragma once

#include "graft/nn/unary.h"
#include "quant_state.h"
#include "settings.h"

namespace graft::bnb {

/// y = x W^T + b with W in 4-bit blocks. Computes in the settings' compute dtype, in float32 when x
/// is float32; y has the dtype of x.
class Linear4bit : public nn::Unary {
 public:
  /// Everything on meta.
  Linear4bit(const ModuleSpec& spec, at::ScalarType compute_dtype);

  /// Takes a weight and its companions as a checkpoint has them, and keeps them for stored().
  void fill(const Tensors& tensors);
  void fill(QuantizedWeight quantized, const at::Tensor& bias);

  at::Tensor forward(const at::Tensor& x) override;
  void describe(ModuleSpec& spec) const override;

  /// The weight and its companions in the checkpoint's layout, bit for bit.
  const Tensors& stored() const { return stored_; }
  /// [N, K] in the dtype of the weight before quantization.
  at::Tensor dequantize() const;

  at::Tensor weight;  ///< packed bytes [ceil(N * K / 2), 1]
  at::Tensor bias;

 private:
  void take(Tensors stored, QuantState state, const at::Tensor& given_bias);
  /// Rows [first, first + count) into `out` [count, K].
  at::Tensor rows(std::int64_t first, std::int64_t count) const;

  std::int64_t in_features_, out_features_;
  at::ScalarType compute_dtype_;
  Tensors stored_;
  QuantState state_;
};

}  // namespace graft::bnb
