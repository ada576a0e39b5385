#pragma once

#include "graft/nn/unary.h"
#include "graft/tensors.h"

namespace org::example::special {

/// A SpecialLinear, y = x W^T / sqrt(K), with W as int8 rows. An ordinary quantized linear layer in
/// its place would forget the factor.
class QuantizedSpecialLinear : public graft::nn::Unary {
 public:
  /// Everything on meta.
  explicit QuantizedSpecialLinear(const graft::ModuleSpec& spec);

  /// From the dense weight [N, K].
  void quantize(const at::Tensor& weight);
  /// [N, K] float32, without the factor.
  at::Tensor dequantize() const;

  at::Tensor forward(const at::Tensor& x) override;
  void describe(graft::ModuleSpec& spec) const override;

  at::Tensor codes;   ///< int8 [N, K]
  at::Tensor scales;  ///< float32 [N]
};

}  // namespace org::example::special
