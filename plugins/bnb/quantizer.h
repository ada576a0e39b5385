#pragma once

#include "graft/quantizer.h"

namespace graft::bnb {

/// The method "bitsandbytes": 4-bit blocks and LLM.int8, pre-quantized and on the fly.
class BnbQuantizer : public Quantizer {
 public:
  int recognises(const Value& settings) const override;
  QuantConfigPtr parse(const Value& settings) const override;
  Value describe(const QuantConfig& config) const override;
  Value describe_modules(const QuantConfig& config,
                         std::span<const PlannedModule> modules) const override;
  std::vector<OptionSpec> options() const override;
  std::vector<std::string> formats() const override;
  /// As Transformers: a device map with the CPU beside GPUs has to be allowed by the field
  /// llm_int8_enable_fp32_cpu_offload, and leaves what is on the CPU in float.
  bool quantizes_offloaded(const QuantConfig& config) const override;
  QuantConfigPtr in_format(const QuantConfig& config, const std::string& format) const override;
  bool pre_quantized_by_default() const override { return false; }
  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::string replacement_class(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::vector<TensorSpec> tensors(const ModuleSpec& spec, const QuantConfig& config) const override;
  std::shared_ptr<const Findings> examine(const ModuleSpec& spec, const QuantConfig& config,
                                          const Tensors& tensors) const override;
  std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                   const QuantConfig& config) const override;
  void fill(nn::Block& module, const QuantConfig& config, const Tensors& tensors) const override;
  CalibrationUse calibration(const QuantConfig& config) const override;
  GroupResult quantize(const ModuleGroup& group, const Context& context) const override;
  Tensors save(const nn::Block& module, const QuantConfig& config) const override;
  at::Tensor dequantize(const nn::Block& module) const override;
};

}  // namespace graft::bnb
