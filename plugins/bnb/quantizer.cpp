#include "quantizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "cuda/fragments.h"
#include "feedback.h"
#include "four_bit_panels.h"
#include "graft/error.h"
#include "graft/module_rules.h"
#include "kernels/cpu_level.h"
#include "linear4bit.h"
#include "linear8bit.h"
#include "quant_state.h"
#include "settings.h"

namespace graft::bnb {
namespace {

const BnbConfig& own(const QuantConfig& config) { return dynamic_cast<const BnbConfig&>(config); }

/// Of the quant_state's JSON, about.
constexpr std::uint64_t kBlobBytes = 100, kNestedBlobBytes = 180;

std::vector<TensorSpec> tensors_of_4bit(const ModuleSpec& spec, const BnbConfig& config) {
  const auto count =
      static_cast<std::uint64_t>(spec.in_features) * static_cast<std::uint64_t>(spec.out_features);
  const std::uint64_t blocks = (count + kBlock - 1) / kBlock;
  const bool nested = config.double_quant;
  std::vector<TensorSpec> out;
  out.push_back({"weight", {}, std::nullopt, true, (count + 1) / 2});
  // Any dtype and shape: read_quant_state tells what is wrong with one.
  out.push_back({"weight.absmax", {}, std::nullopt, true, nested ? blocks : 4 * blocks});
  out.push_back({"weight.nested_absmax",
                 {at::kFloat},
                 std::nullopt,
                 false,
                 nested ? 4 * ((blocks + kNestedBlock - 1) / kNestedBlock) : 0});
  out.push_back(
      {"weight.nested_quant_map", {at::kFloat}, std::nullopt, false, nested ? 1024U : 0U});
  out.push_back({"weight.quant_map", {at::kFloat}, std::nullopt, false, 64});
  for (const auto type : {QuantType::nf4, QuantType::fp4})
    out.push_back({blob_name(type),
                   {at::kByte},
                   std::nullopt,
                   false,
                   type != config.type ? 0
                   : nested            ? kNestedBlobBytes
                                       : kBlobBytes});
  for (auto& tensor : out)
    if (tensor.name != "weight") tensor.examined = tensor.finite = true;
  return out;
}

std::vector<TensorSpec> tensors_of_8bit(const ModuleSpec& spec, const BnbConfig& config) {
  const auto n = static_cast<std::uint64_t>(spec.out_features);
  if (config.has_fp16_weight)
    return {{"weight",
             {at::kHalf, at::kBFloat16, at::kFloat},
             std::vector{spec.out_features, spec.in_features},
             true,
             2 * n * static_cast<std::uint64_t>(spec.in_features),
             true}};
  return {{"weight",
           {at::kChar},
           std::vector{spec.out_features, spec.in_features},
           true,
           n * static_cast<std::uint64_t>(spec.in_features)},
          {"SCB", {at::kFloat}, std::vector{spec.out_features}, true, 4 * n, true, true},
          {"weight_format", {at::kByte}, std::nullopt, false, 1}};
}

}  // namespace

int BnbQuantizer::recognises(const Value& settings) const {
  const std::string method = settings.get_string("quant_method", "");
  if (method == "bitsandbytes" || method == "bitsandbytes_4bit" || method == "bitsandbytes_8bit")
    return 100;
  if (!method.empty()) return 0;
  return settings.find("load_in_4bit") || settings.find("load_in_8bit") ? 90 : 0;
}

QuantConfigPtr BnbQuantizer::parse(const Value& settings) const {
  return BnbConfig::parse(settings);
}

Value BnbQuantizer::describe(const QuantConfig& config) const { return own(config).describe(); }

Value BnbQuantizer::describe_modules(const QuantConfig& config,
                                     std::span<const PlannedModule> modules) const {
  const auto& all = own(config);
  bool other_than_usual = false;
  for (const auto& module : modules) {
    other_than_usual |= module.config ? is_output_head(module.names.front()) : !module.usual;
    if (!module.config) continue;
    // What kind of 4-bit weights they are, modules say for themselves.
    BnbConfig alike = own(*module.config);
    alike.type = all.type;
    alike.double_quant = all.double_quant;
    alike.source = all.source;
    const Value said = all.describe(), wanted = alike.describe();
    for (const auto& [key, value] : wanted.as_object())
      if (const Value* here = said.find(key); here ? *here != value : !value.is_null())
        throw Error(ErrorKind::usage,
                    "files of bitsandbytes cannot say that a module has settings of its own, but "
                    "for the type of 4-bit weights and double quantization")
            .at(module.names.front())
            .at("field " + quote(key))
            .expected(here ? to_json(*here) : "null")
            .found(to_json(value))
            .hint("leave out the options of the rule");
  }
  Value out = describe(config);
  // Without a list readers leave the head dense on their own, with one they do not. What was given
  // stays in it: vLLM knows layers by their names, and not the parts of modules that it fuses.
  std::vector<std::string> list = config.skip;
  for (auto& name : skip_list({}, modules, /*with_usual=*/true))
    if (std::find(list.begin(), list.end(), name) == list.end()) list.push_back(std::move(name));
  out.set("llm_int8_skip_modules",
          other_than_usual ? Value(Value::Array(list.begin(), list.end())) : Value());
  return out;
}

std::vector<OptionSpec> BnbQuantizer::options() const {
  using Type = OptionSpec::Type;
  const auto four = [](const char* type) {
    return Value(Value::Object{{"load_in_4bit", true}, {"bnb_4bit_quant_type", type}});
  };
  return {
      {"bnb_4bit_quant_type",
       "--quant-type",
       Type::text,
       "nf4",
       "Default nf4",
       {"nf4", "fp4", "int8"},
       Value(Value::Object{{"nf4", four("nf4")},
                           {"fp4", four("fp4")},
                           {"int8", Value(Value::Object{{"load_in_8bit", true}})}})},
      {"bnb_4bit_use_double_quant",
       "--double-quant",
       Type::boolean,
       false,
       "Quantize the absmax of the blocks too: 4.13 bits a weight in place of 4.5",
       {},
       {}},
      {"bnb_4bit_compute_dtype",
       "--compute-dtype",
       Type::text,
       "float32",
       "What 4-bit weights multiply in",
       {"float32", "bfloat16", "float16"},
       {}},
      {"bnb_4bit_quant_storage",
       "--quant-storage",
       Type::text,
       "uint8",
       "What packed bytes are written as",
       {"uint8", "int8", "float16", "bfloat16", "float32", "float64"},
       {}},
      {"llm_int8_threshold",
       "--int8-threshold",
       Type::number,
       6.0,
       "Activations from here on leave int8; 0: none",
       {},
       {}},
      {"llm_int8_enable_fp32_cpu_offload",
       "--fp32-cpu-offload",
       Type::boolean,
       false,
       "Allow a device map with the CPU beside GPUs; what is quantized here stays in float there",
       {},
       {},
       true},
      {"graft_int8_forward",
       "--int8-forward",
       Type::text,
       "llm_int8",
       "How int8 weights multiply",
       {"llm_int8", "dequant"},
       {},
       true},
      {"llm_int8_skip_modules",
       "--skip",
       Type::text,
       Value(Value::Array{}),
       "Leave modules of this name dense; may be repeated",
       {},
       {}},
  };
}

std::vector<std::string> BnbQuantizer::formats() const {
  return {"uint8", "int8", "float16", "bfloat16", "float32", "float64"};
}

QuantConfigPtr BnbQuantizer::in_format(const QuantConfig& config, const std::string& format) const {
  const auto& known = formats();
  if (std::find(known.begin(), known.end(), format) == known.end())
    return Quantizer::in_format(config, format);
  if (own(config).bits == 8)
    throw Error(ErrorKind::usage, "int8 weights have one format only")
        .found(quote(format))
        .hint("the formats are how packed 4-bit weights are stored");
  auto copy = std::make_shared<BnbConfig>(own(config));
  copy->storage = *dtype_from_word(format);
  copy->other_storage = true;
  return copy;
}

bool BnbQuantizer::quantizes_offloaded(const QuantConfig& config) const {
  if (own(config).cpu_offload) return false;
  throw Error(ErrorKind::usage, "the device map leaves modules on the CPU")
      .at("field 'llm_int8_enable_fp32_cpu_offload'")
      .expected("true")
      .found("false")
      .hint("set it (--fp32-cpu-offload): what a dense model has on the CPU stays in float then; or "
            "place all of the model on GPUs or all of it on the CPU");
}

Support BnbQuantizer::supports(const ModuleSpec& spec, const QuantConfig& config) const {
  if (spec.in_features < 1 || spec.out_features < 1) return Support::no("it is no matrix");
  if (own(config).bits == 8 && spec.in_features >= 1 << 17)
    return Support::no("sums of rows of 131072 inputs or more do not fit 32 bits");
  if (spec.device.is_cuda()) {
    if (own(config).bits == 8)
      return Support::with(spec.in_features % 16 == 0 ? "cuda int8"
                                                      : "cuda, dequantized each time");
    const auto group = panel_group(spec.in_features, kBlock);  // as nearly all files have
    return Support::with(group > 0 &&
                                 cuda::fits_fragments(spec.out_features, spec.in_features, group)
                             ? "cuda 4-bit"
                             : "cuda, a dense copy");
  }
  return Support::with("cpu " + std::string(kernels::name_of(kernels::cpu_level())) +
                       (own(config).bits == 8 ? " int8" : " 4-bit panels"));
}

std::string BnbQuantizer::replacement_class(const ModuleSpec&, const QuantConfig& config) const {
  return own(config).bits == 8 ? "Linear8bitLt" : "Linear4bit";
}

std::vector<TensorSpec> BnbQuantizer::tensors(const ModuleSpec& spec,
                                              const QuantConfig& config) const {
  auto out = own(config).bits == 8 ? tensors_of_8bit(spec, own(config))
                                   : tensors_of_4bit(spec, own(config));
  if (spec.bias)
    out.push_back({"bias",
                   {at::kHalf, at::kBFloat16, at::kFloat},
                   std::vector{spec.out_features},
                   true,
                   static_cast<std::uint64_t>(spec.out_features) * c10::elementSize(spec.dtype),
                   true});
  return out;
}

std::shared_ptr<const Findings> BnbQuantizer::examine(const ModuleSpec& spec,
                                                      const QuantConfig& config,
                                                      const Tensors& tensors) const {
  if (own(config).bits == 4) read_quant_state(tensors, spec.out_features, spec.in_features);
  return nullptr;
}

std::shared_ptr<nn::Block> BnbQuantizer::build(const ModuleSpec& spec,
                                               const QuantConfig& config) const {
  if (own(config).bits == 8) return std::make_shared<Linear8bitLt>(spec, own(config));
  return std::make_shared<Linear4bit>(spec, own(config).compute_dtype);
}

void BnbQuantizer::fill(nn::Block& module, const QuantConfig&, const Tensors& tensors) const {
  if (auto* eight = dynamic_cast<Linear8bitLt*>(&module)) return eight->fill(tensors);
  dynamic_cast<Linear4bit&>(module).fill(tensors);
}

CalibrationUse BnbQuantizer::calibration(const QuantConfig& config) const {
  return own(config).bits == 4 ? CalibrationUse::optional : CalibrationUse::none;
}

GroupResult BnbQuantizer::quantize(const ModuleGroup& group, const Context&) const {
  GroupResult result;
  std::optional<WeightRounder> rounder;
  for (const auto& member : group.members) {
    const auto& config = own(*member.config);
    const auto* given_bias = member.dense.find("bias");
    const auto bias = given_bias ? *given_bias : at::Tensor();
    auto module = build(member.spec, config);
    const auto& weight = member.dense.at("weight");
    if (config.bits == 8) {
      dynamic_cast<Linear8bitLt&>(*module).quantize(weight, bias);
    } else if (group.inputs.tokens > 0 && takes_feedback(member.spec.in_features)) {
      if (!rounder)
        rounder.emplace(member.spec.in_features, group.inputs, feedback_options(group.recipe));
      result.fallback = rounder->fallback();
      dynamic_cast<Linear4bit&>(*module).fill(
          result.fallback.empty()
              ? feedback_weight(*rounder, weight, config.type, config.double_quant, config.storage)
              : quantize_weight(weight, config.type, config.double_quant, config.storage),
          bias);
    } else {
      if (group.inputs.tokens > 0)
        result.fallback = "rows of " + std::to_string(member.spec.in_features) +
                          " weights are not made of whole blocks";
      dynamic_cast<Linear4bit&>(*module).fill(
          quantize_weight(weight, config.type, config.double_quant, config.storage), bias);
    }
    result.modules.push_back(std::move(module));
  }
  return result;
}

Tensors BnbQuantizer::save(const nn::Block& module, const QuantConfig& config) const {
  const auto* eight = dynamic_cast<const Linear8bitLt*>(&module);
  const auto* four = dynamic_cast<const Linear4bit*>(&module);
  Tensors out = eight ? eight->stored() : four->stored();
  if (four && own(config).other_storage)
    out.set("weight", stored_as(out.at("weight"), own(config).storage));
  const auto& bias = eight ? eight->bias : four->bias;
  if (bias.defined()) out.set("bias", bias);
  return out;
}

at::Tensor BnbQuantizer::dequantize(const nn::Block& module) const {
  if (const auto* eight = dynamic_cast<const Linear8bitLt*>(&module))
    return eight->master().defined() ? eight->master().to(at::kFloat) : eight->dequantize();
  return dynamic_cast<const Linear4bit&>(module).dequantize();
}

}  // namespace graft::bnb
