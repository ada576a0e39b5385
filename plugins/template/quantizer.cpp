#include "quantizer.h"

#include "linear.h"

namespace org::example::rtn8 {

using namespace graft;

int Rtn8Quantizer::recognises(const Value& settings) const {
  return settings.get_string("quant_method", "") == "rtn8" ? 100 : 0;
}

QuantConfigPtr Rtn8Quantizer::parse(const Value& settings) const {
  auto config = std::make_shared<Rtn8Config>();
  config->skip = settings.get_strings("modules_to_not_convert");
  for (const auto& [key, value] : settings.as_object())
    if (key != "quant_method" && key != "modules_to_not_convert")
      config->unknown_fields.push_back(key);
  return config;
}

Value Rtn8Quantizer::describe(const QuantConfig& config) const {
  Value settings;
  settings.set("quant_method", "rtn8");
  if (!config.skip.empty())
    settings.set("modules_to_not_convert", Value::Array(config.skip.begin(), config.skip.end()));
  return settings;
}

std::vector<OptionSpec> Rtn8Quantizer::options() const {
  OptionSpec skip;
  skip.name = "modules_to_not_convert";
  skip.flag = "--skip";
  skip.otherwise = Value::Array{};
  skip.help = "Leave modules of this name dense; may be repeated";
  return {skip};
}

Support Rtn8Quantizer::supports(const ModuleSpec& spec, const QuantConfig&) const {
  if (spec.in_features < 1 || spec.out_features < 1) return Support::no("it is no matrix");
  return Support::with("cpu scalar rows");
}

std::vector<TensorSpec> Rtn8Quantizer::tensors(const ModuleSpec& spec, const QuantConfig&) const {
  const std::int64_t n = spec.out_features, k = spec.in_features;
  auto scales = TensorSpec::of("scales", {at::kFloat}, {n});
  scales.finite = true;
  std::vector<TensorSpec> out = {TensorSpec::of("codes", {at::kChar}, {n, k}), scales};
  if (spec.bias) out.push_back(TensorSpec::of("bias", {at::kFloat, at::kHalf, at::kBFloat16}, {n}));
  return out;
}

std::shared_ptr<nn::Block> Rtn8Quantizer::build(const ModuleSpec& spec, const QuantConfig&) const {
  return std::make_shared<Rtn8Linear>(spec);
}

GroupResult Rtn8Quantizer::quantize(const ModuleGroup& group, const Context&) const {
  GroupResult result;
  for (const auto& member : group.members) {
    auto module = std::make_shared<Rtn8Linear>(member.spec);
    module->quantize(member.dense);
    result.modules.push_back(std::move(module));
  }
  return result;
}

at::Tensor Rtn8Quantizer::dequantize(const nn::Block& module) const {
  return dynamic_cast<const Rtn8Linear&>(module).dequantize();
}

}  // namespace org::example::rtn8
