#pragma once

#include "cuda/device_weight.h"
#include "graft/nn/row_linear.h"
#include "graft/nn/unary.h"
#include "graft/quantizer.h"
#include "graft/tensors.h"
#include "kernels/panel_tensors.h"
#include "settings.h"

namespace graft::gptq {

/// y = x W^T + b with W in packed groups. Class and tensors as AutoGPTQ and GPTQModel name them.
/// W = scale * (code - zero) with scales in the model's dtype and rounded once to it, as GPTQModel
/// does; of a float32 model in the dtype of the scales; in float32 when W does not fit into half
/// precision. So dequantize() gives it, and float32 activations are multiplied with it. All others
/// are multiplied from panels as graft::activations() says, with scales as stored and no rounding
/// of W. Words that panels cannot hold multiply dequantized, in the dtype of x: where the last of
/// them are not full, and where groups have other sizes than group_size. On a CUDA device the codes
/// are there as the kernels take them, and the small tensors of the file stay on the CPU.
class QuantLinear : public nn::Unary, public nn::RowLinear {
 public:
  /// Everything on meta.
  QuantLinear(const ModuleSpec& spec, const GptqConfig& config);
  ~QuantLinear() override;

  /// Takes the tensors of a checkpoint; stored() gives them again.
  void fill(const Tensors& tensors, const GptqConfig& config);

  using Unary::to;
  void to(torch::Device device, bool non_blocking = false) override;

  at::Tensor forward(const at::Tensor& x) override;
  /// On a CUDA device, of 4-bit weights.
  at::Tensor forward_segments(const at::Tensor& x, std::span<const Segment> segments) override;
  std::unique_ptr<nn::RowProduct> row_product(at::ScalarType dtype) const override;
  void describe(ModuleSpec& spec) const override;

  /// The tensors as a checkpoint with zero points in `format` has them. Throws Error(usage) when
  /// that format cannot hold them.
  Tensors stored(GptqConfig::Format format) const;
  /// [N, K] in the dtype that the weight is rounded to, where the weight is.
  at::Tensor dequantize() const;
  WeightNeighbours neighbours() const;
  /// [K, N] uint8.
  at::Tensor codes() const;

  at::Tensor qweight;  ///< int32 [words(K), N]: as in the file, or the first bytes of the panels
  at::Tensor qzeros;   ///< int32 [G, words(N)] as in the file, or the first of the panels'
  at::Tensor scales;   ///< [G, N] as in the file, or the first of the panels'
  at::Tensor bias;

 private:
  /// Makes panels of the words where that can be done.
  void make_panels();
  /// [K] int32: the group of each input.
  at::Tensor group_of_input() const;
  /// int32 [G, words(N)] of zero points [G, N] int16, as the file's zero rule packs them.
  at::Tensor pack_zeros(const at::Tensor& zeros) const;
  at::Tensor zeros_as_in_file() const;
  /// Whether panels hold the groups as they are in the file, and so the only copy of the scales.
  bool in_order() const;
  /// The scales of these outputs, [G, count] in the dtype of the file.
  at::Tensor scales_of(std::int64_t first, std::int64_t count) const;
  /// The words of outputs [first, first + count) as in the file, int32 [words(K), count]; `first`
  /// is a multiple of a panel's width.
  at::Tensor words(std::int64_t first, std::int64_t count) const;
  /// The zero points of these outputs, int16 [G, count].
  at::Tensor zero_points(std::int64_t first, std::int64_t count) const;
  /// The transposed weight of these outputs: [K, count] in weight_dtype_.
  at::Tensor columns(std::int64_t first, std::int64_t count) const;

  std::int64_t in_features_, out_features_, group_size_ = 0;
  int bits_;
  ZeroRule zero_rule_ = ZeroRule::plain;
  at::ScalarType model_dtype_;  ///< of the model as its config names it
  at::ScalarType weight_dtype_ = at::kHalf;
  at::Tensor group_;            ///< [K] int32; undefined: the inputs are in order
  at::Tensor g_idx_;            ///< as in the file; undefined when it has none, or:
  bool counts_groups_ = false;  ///< the file's g_idx says k / group_size
  bool zeros_in_panels_ = false;
  kernels::PanelTensors panels_;
  at::Tensor float_bias_;  ///< what is added, in float32; undefined: nothing
  void to_cuda(const c10::Device& device);
  void to_cpu();
  cuda::DeviceWeight device_weight_;
  at::Tensor
      stray_bias_;  ///< of a file whose model has none: kept for the file, added when not zero
};

}  // namespace graft::gptq
