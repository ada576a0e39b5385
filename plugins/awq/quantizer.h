#pragma once

#include "graft/quantizer.h"

namespace graft::awq {

/// The method "awq": groups of 4-bit codes in the layouts GEMM, GEMV and GEMVFast.
class AwqQuantizer : public Quantizer {
 public:
  int recognises(const Value& settings) const override;
  QuantConfigPtr parse(const Value& settings) const override;
  Value describe(const QuantConfig& config) const override;
  Value describe_modules(const QuantConfig& config,
                         std::span<const PlannedModule> modules) const override;
  std::vector<OptionSpec> options() const override;
  std::vector<std::string> settings_files() const override;
  std::vector<std::string> formats() const override;
  QuantConfigPtr in_format(const QuantConfig& config, const std::string& format) const override;
  bool pre_quantized_by_default() const override { return true; }
  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override;
  void require_portable(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::string replacement_class(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::vector<TensorSpec> tensors(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::shared_ptr<const Findings> examine(const ModuleSpec& spec, const QuantConfig& config,
                                          const Tensors& tensors) const override;
  Settled settle(const QuantConfigPtr& config, std::span<const Examined> modules,
                 Trust trust) const override;
  std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                   const QuantConfig& config) const override;
  void fill(nn::Block& module, const QuantConfig& config, const Tensors& tensors) const override;
  CalibrationUse calibration(const QuantConfig&) const override {
    return CalibrationUse::required;
  }
  GroupResult quantize(const ModuleGroup& group, const Context& context) const override;
  bool searches_scales(const QuantConfig& config) const override;
  at::Tensor input_scales(const ModuleGroup& group, const Context& context) const override;
  bool moves_codes(const QuantConfig& config) const override;
  WeightNeighbours neighbours(const nn::Block& module) const override;
  std::shared_ptr<nn::Block> moved(const nn::Block& module, const ModuleSpec& spec,
                                   const QuantConfig& config,
                                   const at::Tensor& moves) const override;
  Tensors save(const nn::Block& module, const QuantConfig& config) const override;
  at::Tensor dequantize(const nn::Block& module) const override;
};

}  // namespace graft::awq
