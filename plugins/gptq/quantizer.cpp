#include "quantizer.h"

#include <algorithm>
#include <map>

#include "cuda/byte_layout.h"
#include "cuda/fragments.h"
#include "findings.h"
#include "graft/error.h"
#include "graft/module_rules.h"
#include "kernels/cpu_level.h"
#include "kernels/format.h"
#include "linear.h"
#include "settings.h"
#include "solver.h"

namespace graft::gptq {
namespace {

const GptqConfig& own(const QuantConfig& config) { return dynamic_cast<const GptqConfig&>(config); }

}  // namespace

int GptqQuantizer::recognises(const Value& settings) const {
  const std::string method = settings.get_string("quant_method", settings.get_string("method", ""));
  if (method == "gptq") return 100;
  if (method == "marlin" || method == "bitblas") return 80;  // parse() says why not
  if (!method.empty()) return 0;
  // quantize_config.json of AutoGPTQ has no quant_method.
  const bool has_bits = settings.find("bits") || settings.find("wbits");
  return has_bits && (settings.find("desc_act") || settings.find("damp_percent")) ? 60 : 0;
}

QuantConfigPtr GptqQuantizer::parse(const Value& settings) const {
  return GptqConfig::parse(settings);
}

Value GptqQuantizer::describe(const QuantConfig& config) const { return own(config).describe(); }

Value GptqQuantizer::describe_modules(const QuantConfig& config,
                                      std::span<const PlannedModule> modules) const {
  return own(config).describe_modules(modules);
}

std::vector<OptionSpec> GptqQuantizer::options() const {
  using Type = OptionSpec::Type;
  return {
      {"bits",
       "--bits",
       Type::integer,
       4,
       "Of a code; default 4",
       {"2", "3", "4", "8"},
       {}},
      {"group_size",
       "--group-size",
       Type::integer,
       128,
       "Inputs that share a scale, -1: all; default 128",
       {},
       {}},
      {"desc_act",
       "--desc-act",
       Type::boolean,
       false,
       "Group inputs by falling activation: better, slower",
       {},
       {}},
      {"zero_point",
       "--asym",
       Type::boolean,
       false,
       "Zero points of their own; in the format gptq_v2 unless --format says otherwise",
       {},
       // GPTQModel refuses asymmetric files in v1 that it did not write.
       Value(Value::Object{
           {"true", Value(Value::Object{{"zero_point", true}, {"checkpoint_format", "gptq_v2"}})}})},
      {"damp_percent",
       "--damp",
       Type::number,
       0.05,
       "Share of the mean diagonal of H that is added to it; default 0.05",
       {},
       {}},
      {"checkpoint_format",
       "--format",
       Type::text,
       "gptq",
       "How zero points are written",
       {"gptq", "gptq_v2"},
       {}},
      {"modules_to_not_convert",
       "--skip",
       Type::text,
       Value(Value::Array{}),
       "Leave modules of this name dense; may be repeated",
       {},
       {}},
  };
}

std::vector<std::string> GptqQuantizer::settings_files() const { return {"quantize_config.json"}; }

std::vector<std::string> GptqQuantizer::formats() const { return {"gptq", "gptq_v2"}; }

QuantConfigPtr GptqQuantizer::in_format(const QuantConfig& config,
                                        const std::string& format) const {
  for (const auto known : {GptqConfig::Format::v1, GptqConfig::Format::v2})
    if (format == word(known)) return own(config).with_format(known);
  return Quantizer::in_format(config, format);
}

Value GptqQuantizer::with_bits(const Value& settings,
                               const std::vector<std::pair<std::string, int>>& modules) const {
  if (settings.find("dynamic"))
    throw Error(ErrorKind::usage, "bits cannot be chosen beside rules for modules")
        .at("field 'dynamic'")
        .hint("leave out the rules or the choice");
  if (modules.empty()) return settings;
  std::map<int, std::size_t> count;
  for (const auto& [path, bits] : modules) ++count[bits];
  const int usual = std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) {
                      return a.second < b.second;
                    })->first;
  Value out = settings, rules{Value::Object{}};
  out.set("bits", usual);
  for (const auto& [path, bits] : modules) {
    if (bits == usual) continue;
    std::string pattern = "+:^";  // GPTQModel matches from the start alone
    for (const char c : path) pattern += c == '.' ? "\\." : std::string(1, c);
    Value rule;
    rule.set("bits", bits);
    rules.set(pattern + "$", std::move(rule));
  }
  if (!rules.as_object().empty()) out.set("dynamic", std::move(rules));
  return out;
}

Support GptqQuantizer::supports(const ModuleSpec& spec, const QuantConfig& config) const {
  if (spec.in_features < 1 || spec.out_features < 1) return Support::no("it is no matrix");
  if (spec.device.is_cuda()) {
    const auto n = spec.out_features, k = spec.in_features, group = own(config).group_of(k);
    const bool is_int8 = own(config).bits == 8;
    if (!(is_int8 ? cuda::fits_bytes(n, k, group) : cuda::fits_fragments(n, k, group)))
      return Support::with("cuda, a dense copy");
    return Support::with(is_int8 ? "cuda int8" : "cuda int4");
  }
  return Support::with("cpu " + std::string(kernels::name_of(kernels::cpu_level())) +
                       (own(config).bits == 8 ? " int8 panels" : " int4 panels"));
}

void GptqQuantizer::require_portable(const ModuleSpec& spec, const QuantConfig& config) const {
  const auto& c = own(config);
  require_whole_groups(spec, c.group_size, {16, 32, 64, 128, 256, 512, 1024});
  const std::int64_t in_a_word = c.bits == 3 ? 32 : 32 / c.bits;
  if (spec.in_features % in_a_word || spec.out_features % in_a_word)
    throw Error(ErrorKind::usage, "codes of " + std::to_string(c.bits) +
                                      " bits do not fill whole words, which other readers of gptq "
                                      "do not load")
        .expected("inputs and outputs that are multiples of " + std::to_string(in_a_word))
        .found(std::to_string(spec.in_features) + " inputs, " + std::to_string(spec.out_features) +
               " outputs")
        .hint("leave the module dense: --skip, or a rule that keeps it");
}

std::string GptqQuantizer::replacement_class(const ModuleSpec&, const QuantConfig&) const {
  return "QuantLinear";
}

std::vector<TensorSpec> GptqQuantizer::tensors(const ModuleSpec& spec,
                                               const QuantConfig& config) const {
  const auto& c = own(config);
  const std::int64_t k = spec.in_features, n = spec.out_features, groups = c.groups(k);
  auto qweight = TensorSpec::of("qweight", {at::kInt}, {words_for(k, c.bits), n});
  auto qzeros = TensorSpec::of("qzeros", {at::kInt}, {groups, words_for(n, c.bits)});
  auto scales = TensorSpec::of("scales", {at::kHalf, at::kBFloat16, at::kFloat}, {groups, n});
  auto g_idx = TensorSpec::of("g_idx", {at::kInt}, {k});
  qzeros.examined = scales.examined = g_idx.examined = scales.finite = true;
  g_idx.required = c.desc_act && groups > 1 && !c.static_groups;
  auto bias = TensorSpec::of("bias", {at::kHalf, at::kBFloat16, at::kFloat}, {n});
  bias.required = spec.bias;
  bias.finite = true;
  bias.examined = !spec.bias;
  if (!spec.bias) bias.bytes = 0;
  return {std::move(qweight), std::move(qzeros), std::move(scales), std::move(g_idx),
          std::move(bias)};
}

std::shared_ptr<const Findings> GptqQuantizer::examine(const ModuleSpec& spec,
                                                       const QuantConfig& config,
                                                       const Tensors& tensors) const {
  return examine_module(spec, own(config), tensors);
}

Settled GptqQuantizer::settle(const QuantConfigPtr& config, std::span<const Examined> modules,
                              Trust trust) const {
  return settle_modules(std::dynamic_pointer_cast<const GptqConfig>(config), modules, trust);
}

std::shared_ptr<nn::Block> GptqQuantizer::build(const ModuleSpec& spec,
                                                const QuantConfig& config) const {
  return std::make_shared<QuantLinear>(spec, own(config));
}

void GptqQuantizer::fill(nn::Block& module, const QuantConfig& config,
                         const Tensors& tensors) const {
  dynamic_cast<QuantLinear&>(module).fill(tensors, own(config));
}

GroupResult GptqQuantizer::quantize(const ModuleGroup& group, const Context&) const {
  return quantize_group(group);
}

bool GptqQuantizer::moves_codes(const QuantConfig&) const { return true; }

WeightNeighbours GptqQuantizer::neighbours(const nn::Block& module) const {
  return dynamic_cast<const QuantLinear&>(module).neighbours();
}

std::shared_ptr<nn::Block> GptqQuantizer::moved(const nn::Block& module, const ModuleSpec& spec,
                                      const QuantConfig& config, const at::Tensor& moves) const {
  return with_moved_codes(module, spec, config, moves);
}

Tensors GptqQuantizer::save(const nn::Block& module, const QuantConfig& config) const {
  return dynamic_cast<const QuantLinear&>(module).stored(own(config).format);
}

at::Tensor GptqQuantizer::dequantize(const nn::Block& module) const {
  return dynamic_cast<const QuantLinear&>(module).dequantize();
}

}  // namespace graft::gptq
