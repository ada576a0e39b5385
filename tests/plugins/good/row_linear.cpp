#include "row_linear.h"

#include <ATen/ATen.h>

#include "graft/error.h"

namespace graft::test {

RowLinear::RowLinear(const ModuleSpec& spec) : Unary("RowLinear") {
  const auto meta = at::TensorOptions(at::kMeta);
  own("codes", codes, at::empty({spec.out_features, spec.in_features}, meta.dtype(at::kChar)));
  own("scales", scales, at::empty({spec.out_features}, meta.dtype(at::kFloat)));
  own("bias", bias,
      spec.bias ? at::empty({spec.out_features}, meta.dtype(spec.dtype)) : at::Tensor());
}

at::Tensor RowLinear::forward(const at::Tensor& x) {
  const auto weight = (codes.to(at::kFloat) * scales.unsqueeze(1)).to(x.scalar_type());
  return at::linear(x, weight, bias.defined() ? bias.to(x.scalar_type()) : bias);
}

void RowLinear::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.out_features = codes.size(0);
  spec.in_features = codes.size(1);
  spec.bias = bias.defined();
}

int RowQuantizer::recognises(const Value& settings) const {
  return settings.get_string("quant_method", "") == method_ ? 100 : 0;
}

QuantConfigPtr RowQuantizer::parse(const Value& settings) const {
  auto config = std::make_shared<RowConfig>();
  config->settings = settings;
  for (const auto& [key, value] : settings.as_object())
    if (key == "skip")
      for (const auto& name : value.as_array()) config->skip.push_back(name.as_string());
    else if (key != "quant_method" && key != "fault" && key != "where" && key != "most_columns")
      config->unknown_fields.push_back(key);
  return config;
}

Value RowQuantizer::describe(const QuantConfig& config) const {
  return dynamic_cast<const RowConfig&>(config).settings;
}

std::vector<OptionSpec> RowQuantizer::options() const {
  return {{"most_columns",
           "--most-columns",
           OptionSpec::Type::integer,
           std::int64_t{1} << 30,
           "Leave wider modules dense",
           {},
           {}}};
}

Support RowQuantizer::supports(const ModuleSpec& spec, const QuantConfig& config) const {
  const auto most =
      dynamic_cast<const RowConfig&>(config).settings.get_int("most_columns", 1 << 30);
  if (spec.in_features > most)
    return Support::no("it has more than " + std::to_string(most) + " columns");
  return Support::with("cpu rows");
}

std::vector<TensorSpec> RowQuantizer::tensors(const ModuleSpec& spec, const QuantConfig&) const {
  const auto rows = static_cast<std::uint64_t>(spec.out_features);
  std::vector<TensorSpec> out{
      {"codes",
       {at::kChar},
       std::vector{spec.out_features, spec.in_features},
       true,
       rows * static_cast<std::uint64_t>(spec.in_features)},
      {"scales", {at::kFloat}, std::vector{spec.out_features}, true, 4 * rows}};
  if (spec.bias)
    out.push_back(
        {"bias", {}, std::vector{spec.out_features}, true, rows * c10::elementSize(spec.dtype)});
  return out;
}

std::shared_ptr<nn::Block> RowQuantizer::build(const ModuleSpec& spec, const QuantConfig&) const {
  return std::make_shared<RowLinear>(spec);
}

GroupResult RowQuantizer::quantize(const ModuleGroup& group, const Context&) const {
  GroupResult result;
  for (const auto& member : group.members) {
    const auto weight = member.dense.at("weight").to(at::kFloat);
    const auto scales = (weight.abs().amax(1) / 127).clamp_min(1e-30);
    Tensors filled{{"codes", (weight / scales.unsqueeze(1)).round().to(at::kChar)},
                   {"scales", scales}};
    if (member.spec.bias) filled.set("bias", member.dense.at("bias"));
    auto module = build(member.spec, *member.config);
    fill(*module, *member.config, filled);
    result.modules.push_back(std::move(module));
  }
  return result;
}

at::Tensor RowQuantizer::dequantize(const nn::Block& module) const {
  const auto& rows = dynamic_cast<const RowLinear&>(module);
  return rows.codes.to(at::kFloat) * rows.scales.unsqueeze(1);
}

}  // namespace graft::test
