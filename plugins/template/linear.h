#pragma once

#include "graft/nn/unary.h"
#include "graft/tensors.h"

namespace org::example::rtn8 {

/// y = x W^T + b with W as int8 rows, one scale a row: W[n, k] = codes[n, k] * scales[n].
class Rtn8Linear : public graft::nn::Unary {
 public:
  /// Everything on meta.
  explicit Rtn8Linear(const graft::ModuleSpec& spec);

  /// From the dense "weight" [N, K] and "bias" [N]. Throws Error(model) when it is not finite.
  void quantize(const graft::Tensors& dense);
  /// [N, K] float32.
  at::Tensor dequantize() const;

  at::Tensor forward(const at::Tensor& x) override;
  void describe(graft::ModuleSpec& spec) const override;

  at::Tensor codes;   ///< int8 [N, K]
  at::Tensor scales;  ///< float32 [N]
  at::Tensor bias;    ///< [N] or absent
};

}  // namespace org::example::rtn8
