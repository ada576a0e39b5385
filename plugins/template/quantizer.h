#pragma once

#include "graft/quantizer.h"

namespace org::example::rtn8 {

/// The settings, {"quant_method": "rtn8", "modules_to_not_convert": [...]}: there is nothing to set
/// but what stays dense.
struct Rtn8Config : graft::QuantConfig {
  std::string summary() const override { return "int8 rows"; }
};

/// The method's logic, in the order in which the host asks.
class Rtn8Quantizer : public graft::Quantizer {
 public:
  int recognises(const graft::Value& settings) const override;
  graft::QuantConfigPtr parse(const graft::Value& settings) const override;
  graft::Value describe(const graft::QuantConfig& config) const override;
  std::vector<graft::OptionSpec> options() const override;
  bool pre_quantized_by_default() const override { return false; }
  graft::Support supports(const graft::ModuleSpec& spec,
                          const graft::QuantConfig& config) const override;
  std::string replacement_class(const graft::ModuleSpec&,
                                const graft::QuantConfig&) const override {
    return "Rtn8Linear";
  }
  std::vector<graft::TensorSpec> tensors(const graft::ModuleSpec& spec,
                                         const graft::QuantConfig& config) const override;
  std::shared_ptr<graft::nn::Block> build(const graft::ModuleSpec& spec,
                                          const graft::QuantConfig& config) const override;
  graft::GroupResult quantize(const graft::ModuleGroup& group, const graft::Context& context) const override;
  at::Tensor dequantize(const graft::nn::Block& module) const override;
};

}  // namespace org::example::rtn8
