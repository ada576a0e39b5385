#pragma once

#include "graft/nn/unary.h"
#include "graft/tensors.h"
#include "kernels/panel_tensors.h"
#include "settings.h"

namespace graft::bnb {

/// Rows as int8, each by its largest magnitude.
struct Int8Rows {
  at::Tensor codes;   ///< int8 [N, K]
  at::Tensor absmax;  ///< float32 [N]
};
/// `values` float32 [N, K], contiguous, finite, on the CPU.
Int8Rows quantize_rows(const at::Tensor& values);
/// codes * absmax / 127: float32 [N, K], on the device of both.
at::Tensor dequantize_rows(const at::Tensor& codes, const at::Tensor& absmax);

/// y = x W^T + b with W as int8 rows. Class and tensors as bitsandbytes names them.
/// LLM.int8 (Dettmers et al. 2022): activations become int8 a row, except columns with an element
/// of at least `threshold`, which multiply in 16 bits. With Int8Forward::dequant the dense product.
class Linear8bitLt : public nn::Unary {
 public:
  /// Everything on meta.
  Linear8bitLt(const ModuleSpec& spec, const BnbConfig& config);
  ~Linear8bitLt() override;

  /// "weight" int8 [N, K], "SCB" float32 [N], "weight_format" (only row-major is read), "bias".
  void fill(const Tensors& tensors);
  /// From a dense weight [N, K]; it passes through float16 as in bitsandbytes. Throws Error(model)
  /// when it is not finite there.
  void quantize(const at::Tensor& dense, const at::Tensor& given_bias);

  using Unary::to;
  /// On a CUDA device the codes are int8 rows.
  void to(torch::Device device, bool non_blocking = false) override;

  at::Tensor forward(const at::Tensor& x) override;
  void describe(ModuleSpec& spec) const override;

  Tensors stored() const;
  /// [N, K] float32: weight * SCB / 127.
  at::Tensor dequantize() const;
  /// The 16-bit weight that llm_int8_has_fp16_weight keeps, else undefined.
  const at::Tensor& master() const { return master_; }

  at::Tensor weight;  ///< int8 [N, K]: the first bytes of the panels
  at::Tensor SCB, bias;

 private:
  void take_bias(const at::Tensor& given);
  /// Takes int8 rows [N, K] into panels.
  void pack(const at::Tensor& rows);
  /// int8 [N, K] again, on the CPU; in pinned memory when asked for.
  at::Tensor rows(bool pinned = false) const;

  std::int64_t in_features_, out_features_;
  double threshold_;
  BnbConfig::Int8Forward how_;
  kernels::PanelTensors panels_;  ///< of code + 128; scales are SCB
  at::Tensor float_bias_;
  at::Tensor format_;  ///< weight_format of the file; undefined when it had none
  at::Tensor master_;
  bool keeps_master_;
#if GRAFT_HAS_CUDA
  void to_cuda(const c10::Device& device);
  void to_cpu();
  at::Tensor multiply_on_device(const at::Tensor& x) const;
  at::Tensor device_rows_;  ///< int8 [N, K] on a CUDA device; panels_ are empty then
#endif
};

}  // namespace graft::bnb
