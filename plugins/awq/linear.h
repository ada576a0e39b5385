#pragma once

#include "graft/nn/unary.h"
#include "layouts.h"

namespace graft::awq {

/// y = x W^T + b with W in groups of 4-bit codes. Class and tensors as AutoAWQ names them.
/// W = (code - zero) * scale with scales in the model's dtype and rounded once to it, as GPTQModel
/// does; of a float32 model in the dtype of the scales. In float32 when W does not fit into half
/// precision. Multiplies in the dtype of x. Every layout runs as GEMM.
class WQLinear : public nn::Unary {
 public:
  /// Everything on meta.
  WQLinear(const ModuleSpec& spec, const AwqConfig& config);

  /// Takes the tensors of a checkpoint in the layout that `config` reads.
  void fill(const Tensors& tensors, const AwqConfig& config);

  at::Tensor forward(const at::Tensor& x) override;
  void describe(ModuleSpec& spec) const override;

  /// The tensors in a layout; bit for bit those of fill() in the one they came in. Throws
  /// Error(usage) when another cannot hold them.
  Tensors stored(AwqConfig::Version version) const;
  /// [N, K] in the dtype that the weight is rounded to.
  at::Tensor dequantize() const;

  at::Tensor qweight;  ///< int32 [K, N / 8]
  at::Tensor scales;   ///< [G, N]
  at::Tensor bias;

 private:
  /// The transposed weight of outputs [first, first + count): [K, count] in weight_dtype_.
  at::Tensor columns(std::int64_t first, std::int64_t count) const;
  std::int64_t slab_width() const;

  std::int64_t in_features_, out_features_, group_size_;
  AwqConfig::Version version_;
  at::ScalarType model_dtype_;  ///< of the model as its config names it
  at::ScalarType weight_dtype_ = at::kHalf;
  Packed packed_;
  Tensors small_;  ///< the checkpoint's tensors except qweight and bias, as they came
  at::Tensor stray_bias_;  ///< of a file whose model has none: kept for the file, added when not zero
  bool adds_stray_bias_ = false;
};

}  // namespace graft::awq
