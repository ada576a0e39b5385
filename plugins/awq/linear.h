#pragma once

#include "cuda/device_weight.h"
#include "graft/nn/row_linear.h"
#include "graft/nn/unary.h"
#include "kernels/panel_tensors.h"
#include "layouts.h"

namespace graft::awq {

/// y = x W^T + b with W in groups of 4-bit codes. Class and tensors as AutoAWQ names them.
/// W = (code - zero) * scale with scales in the model's dtype and rounded once to it, as GPTQModel
/// does; of a float32 model in the dtype of the scales; in float32 when W does not fit into half
/// precision. So dequantize() gives it, and float32 activations are multiplied with it. All others
/// are multiplied from panels as graft::activations() says, with scales as stored and no rounding
/// of W. GEMVFast offsets that are no zero points multiply dequantized, in the dtype of x.
class WQLinear : public nn::Unary, public nn::RowLinear {
 public:
  /// Everything on meta.
  WQLinear(const ModuleSpec& spec, const AwqConfig& config);
  ~WQLinear() override;

  /// Takes the tensors of a checkpoint in the layout that `config` reads.
  void fill(const Tensors& tensors, const AwqConfig& config);

  using Unary::to;
  /// On a CUDA device the codes are as the kernels take them; the file's small tensors stay on the
  /// CPU.
  void to(torch::Device device, bool non_blocking = false) override;

  at::Tensor forward(const at::Tensor& x) override;
  /// On a CUDA device, of 4-bit weights.
  at::Tensor forward_segments(const at::Tensor& x, std::span<const Segment> segments) override;
  /// Through the scales and the bias; the codes stay. Only on the CPU, and not with GEMVFast offsets
  /// or where a scale would leave its dtype.
  at::Tensor divide_output(const at::Tensor& divisor) override;
  std::unique_ptr<nn::RowProduct> row_product(at::ScalarType dtype) const override;
  void describe(ModuleSpec& spec) const override;

  /// The tensors in a layout; bit for bit those of fill() in the one they came in. Throws
  /// Error(usage) when another cannot hold them.
  Tensors stored(AwqConfig::Version version) const;
  /// [N, K] in the dtype that the weight is rounded to, where the weight is.
  at::Tensor dequantize() const;
  /// Not of GEMVFast files whose offsets are no zero points.
  WeightNeighbours neighbours() const;
  /// [K, N] uint8.
  at::Tensor codes() const;

  at::Tensor qweight;  ///< int32 [K, N / 8]: the GEMM layout, or the first bytes of the panels
  at::Tensor scales;   ///< [G, N], or the first of the panels'
  at::Tensor bias;

 private:
  /// What weights are rounded to, by model_dtype_ and the scales.
  void choose_weight_dtype();
  /// Makes panels where that can be done; they are the only copy then.
  void make_panels();
  /// Takes scales and zero points back from the panels, and lets these go.
  void give_up_panels();
  Tensors small_as_in_file() const;
  /// What the checkpoint's small tensors say, wherever it is now.
  Packed unpacked() const;
  /// The words of outputs [first, first + count) in the GEMM layout, int32 [K, count / 8]; `first`
  /// is a multiple of a panel's width.
  at::Tensor words(std::int64_t first, std::int64_t count) const;
  /// The transposed weight of these outputs: [K, count] in weight_dtype_.
  at::Tensor columns(std::int64_t first, std::int64_t count) const;

  std::int64_t in_features_, out_features_, group_size_;
  AwqConfig::Version version_;
  at::ScalarType model_dtype_;  ///< of the model as its config names it
  at::ScalarType weight_dtype_ = at::kHalf;
  Packed packed_;  ///< empty with panels; on a device without qweight
  kernels::PanelTensors panels_;
  at::Tensor float_bias_;  ///< what is added, in float32; undefined: nothing
  /// The checkpoint's tensors except qweight and bias, as they came; undefined: what the panels
  /// say is packed again.
  Tensors small_;
  void to_cuda(const c10::Device& device);
  void to_cpu();
  cuda::DeviceWeight device_weight_;
  at::Tensor
      stray_bias_;  ///< of a file whose model has none: kept for the file, added when not zero
};

}  // namespace graft::awq
