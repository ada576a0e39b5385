#include "special_quantizer.h"

#include "quantized_special_linear.h"

namespace org::example::special {

using namespace graft;

namespace {

/// The settings are the method's: kept, and written again as they were.
struct SpecialConfig : QuantConfig {
  std::string summary() const override { return "int8 rows"; }
  Value settings;
};

}  // namespace

int SpecialQuantizer::recognises(const Value& settings) const {
  return settings.get_string("quant_method", "") == method_ ? 1 : 0;
}

QuantConfigPtr SpecialQuantizer::parse(const Value& settings) const {
  auto config = std::make_shared<SpecialConfig>();
  config->settings = settings;
  return config;
}

Value SpecialQuantizer::describe(const QuantConfig& config) const {
  return dynamic_cast<const SpecialConfig&>(config).settings;
}

Support SpecialQuantizer::supports(const ModuleSpec& spec, const QuantConfig&) const {
  if (spec.in_features < 1 || spec.out_features < 1) return Support::no("it is no matrix");
  if (spec.bias) return Support::no("a SpecialLinear has no bias");
  return Support::with("cpu dequantize");
}

std::vector<TensorSpec> SpecialQuantizer::tensors(const ModuleSpec& spec,
                                                  const QuantConfig&) const {
  const std::int64_t n = spec.out_features, k = spec.in_features;
  TensorSpec codes, scales;
  codes.name = "codes";
  codes.dtypes = {at::kChar};
  codes.shape = {n, k};
  codes.bytes = static_cast<std::uint64_t>(n * k);
  scales.name = "scales";
  scales.dtypes = {at::kFloat};
  scales.shape = {n};
  scales.bytes = static_cast<std::uint64_t>(4 * n);
  scales.finite = true;
  return {codes, scales};
}

std::shared_ptr<nn::Block> SpecialQuantizer::build(const ModuleSpec& spec,
                                                   const QuantConfig&) const {
  return std::make_shared<QuantizedSpecialLinear>(spec);
}

GroupResult SpecialQuantizer::quantize(const ModuleGroup& group, const Context&) const {
  GroupResult result;
  for (const auto& member : group.members) {
    auto module = std::make_shared<QuantizedSpecialLinear>(member.spec);
    module->quantize(member.dense.at("weight"));
    result.modules.push_back(std::move(module));
  }
  return result;
}

at::Tensor SpecialQuantizer::dequantize(const nn::Block& module) const {
  return dynamic_cast<const QuantizedSpecialLinear&>(module).dequantize();
}

}  // namespace org::example::special
