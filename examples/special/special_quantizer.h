#pragma once

#include "graft/quantizer.h"

namespace org::example::special {

/// Quantizes a SpecialLinear to int8 rows inside a model of another plugin's method.
class SpecialQuantizer : public graft::Quantizer {
 public:
  explicit SpecialQuantizer(std::string method) : method_(std::move(method)) {}

  /// Little: where the method's own plugin is loaded too, it reads the settings of the model.
  int recognises(const graft::Value& settings) const override;
  graft::QuantConfigPtr parse(const graft::Value& settings) const override;
  graft::Value describe(const graft::QuantConfig& config) const override;
  std::vector<graft::OptionSpec> options() const override { return {}; }
  bool pre_quantized_by_default() const override { return false; }
  graft::Support supports(const graft::ModuleSpec& spec,
                          const graft::QuantConfig& config) const override;
  std::string replacement_class(const graft::ModuleSpec&,
                                const graft::QuantConfig&) const override {
    return "QuantizedSpecialLinear";
  }
  std::vector<graft::TensorSpec> tensors(const graft::ModuleSpec& spec,
                                         const graft::QuantConfig& config) const override;
  std::shared_ptr<graft::nn::Block> build(const graft::ModuleSpec& spec,
                                          const graft::QuantConfig& config) const override;
  graft::GroupResult quantize(const graft::ModuleGroup& group, const graft::Context& context) const override;
  at::Tensor dequantize(const graft::nn::Block& module) const override;

 private:
  std::string method_;
};

}  // namespace org::example::special
