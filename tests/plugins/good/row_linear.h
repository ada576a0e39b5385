#pragma once

#include "graft/nn/unary.h"
#include "graft/quantizer.h"

namespace graft::test {

/// y = x W^T + b with W as int8 rows, one scale a row: the least that a method can be.
class RowLinear : public nn::Unary {
 public:
  explicit RowLinear(const ModuleSpec& spec);
  at::Tensor forward(const at::Tensor& x) override;
  void describe(ModuleSpec& spec) const override;

  at::Tensor codes, scales, bias;  // int8 [N, K], float32 [N], [N] or absent
};

struct RowConfig : QuantConfig {
  std::string summary() const override { return "8 bit rows"; }
  Value settings;
};

/// The logic of a method of the name it is given. Rounds to the nearest of 255 steps a row.
class RowQuantizer : public Quantizer {
 public:
  explicit RowQuantizer(std::string method) : method_(std::move(method)) {}

  int recognises(const Value& settings) const override;
  QuantConfigPtr parse(const Value& settings) const override;
  Value describe(const QuantConfig& config) const override;
  std::vector<OptionSpec> options() const override;
  bool pre_quantized_by_default() const override { return false; }
  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::string replacement_class(const ModuleSpec&, const QuantConfig&) const override {
    return "RowLinear";
  }
  std::vector<TensorSpec> tensors(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                   const QuantConfig& config) const override;
  GroupResult quantize(const ModuleGroup& group, const Context& context) const override;
  at::Tensor dequantize(const nn::Block& module) const override;

 private:
  std::string method_;
};

}  // namespace graft::test
