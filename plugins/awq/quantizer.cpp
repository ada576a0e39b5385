#include "quantizer.h"

#include <ATen/ATen.h>

#include <map>

#include "cuda/fragments.h"
#include "graft/error.h"
#include "graft/module_rules.h"
#include "kernels/cpu_level.h"
#include "layouts.h"
#include "linear.h"
#include "settings.h"
#include "solver.h"

namespace graft::awq {
namespace {

constexpr std::int64_t kMiddle = 8;  ///< the zero point of symmetric codes

const AwqConfig& own(const QuantConfig& config) { return dynamic_cast<const AwqConfig&>(config); }

struct ModuleFindings : Findings {
  bool has_zeros = false;    ///< qzeros is there and holds zero points
  bool symmetric = false;    ///< all of them are 8
  bool has_offsets = false;  ///< qzeros of GEMVFast that stand for no zero points
  bool overflows = false;    ///< weights beyond half precision
  std::int64_t zero_scales = 0, negative_scales = 0;
  enum class StrayBias { none, zeros, values } stray_bias = StrayBias::none;
};

std::string some(const std::vector<std::string>& paths, std::size_t all) {
  return std::to_string(paths.size()) + " of " + std::to_string(all) + " modules, first " +
         quote(paths.front());
}

}  // namespace

int AwqQuantizer::recognises(const Value& settings) const {
  const std::string method = settings.get_string("quant_method", settings.get_string("method", ""));
  if (method == "awq") return 100;
  if (!method.empty()) return 0;
  // quant_config.json of AutoAWQ has no quant_method.
  const bool has_bits = settings.find("w_bit") || settings.find("bits");
  return has_bits && settings.find("zero_point") && !settings.find("desc_act") ? 60 : 0;
}

QuantConfigPtr AwqQuantizer::parse(const Value& settings) const {
  return AwqConfig::parse(settings);
}

Value AwqQuantizer::describe(const QuantConfig& config) const { return own(config).describe(); }

Value AwqQuantizer::describe_modules(const QuantConfig& config,
                                     std::span<const PlannedModule> modules) const {
  Value out = Quantizer::describe_modules(config, modules);
  // Transformers, AutoAWQ and vLLM read the list, GPTQModel the rules, for modules in layers alone.
  const auto list = skip_list(config.skip, modules, /*with_usual=*/false);
  if (!list.empty()) out.set("modules_to_not_convert", Value::Array(list.begin(), list.end()));
  Value dynamic(Value::Object{});
  for (const auto& rule : name_rules(modules, [](const PlannedModule& module) {
         return !module.config && !module.usual && in_a_layer(module) ? Value(false) : Value();
       }))
    dynamic.set("-:" + rule.pattern, Value(Value::Object{}));
  if (dynamic.as_object().empty())
    out.erase("dynamic");
  else
    out.set("dynamic", std::move(dynamic));
  return out;
}

std::vector<OptionSpec> AwqQuantizer::options() const {
  using Type = OptionSpec::Type;
  return {
      {"bits", "--bits", Type::integer, 4, "Of a code: 4", {}, {}},
      {"group_size",
       "--group-size",
       Type::integer,
       128,
       "Inputs that share a scale, -1: all; default 128",
       {},
       {}},
      {"version",
       "--version",
       Type::text,
       "gemm",
       "Layout of the tensors",
       {"gemm", "gemv", "gemv_fast"},
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

std::vector<std::string> AwqQuantizer::settings_files() const {
  return {"quant_config.json", "quantize_config.json"};  // of AutoAWQ, of GPTQModel
}

std::vector<std::string> AwqQuantizer::formats() const { return {"gemm", "gemv", "gemv_fast"}; }

QuantConfigPtr AwqQuantizer::in_format(const QuantConfig& config, const std::string& format) const {
  using Version = AwqConfig::Version;
  for (const auto known : {Version::gemm, Version::gemv, Version::gemv_fast})
    if (format == word(known)) {
      auto copy = std::make_shared<AwqConfig>(own(config));
      copy->version = known;
      return copy;
    }
  return Quantizer::in_format(config, format);
}

Support AwqQuantizer::supports(const ModuleSpec& spec, const QuantConfig& config) const {
  if (spec.in_features < 1 || spec.out_features < 1) return Support::no("it is no matrix");
  const auto& c = own(config);
  if (const auto why =
          misfit(c.read_as, spec.in_features, spec.out_features, c.group_of(spec.in_features));
      !why.empty())
    return Support::no(why);
  if (spec.device.is_cuda())
    return Support::with(
        cuda::fits_fragments(spec.out_features, spec.in_features, c.group_of(spec.in_features))
            ? "cuda int4"
            : "cuda, a dense copy");
  return Support::with("cpu " + std::string(kernels::name_of(kernels::cpu_level())) +
                       " int4 panels");
}

void AwqQuantizer::require_portable(const ModuleSpec& spec, const QuantConfig& config) const {
  require_whole_groups(spec, own(config).group_size, {16, 32, 64, 128});
}

std::string AwqQuantizer::replacement_class(const ModuleSpec&, const QuantConfig&) const {
  return "WQLinear";
}

std::vector<TensorSpec> AwqQuantizer::tensors(const ModuleSpec& spec,
                                              const QuantConfig& config) const {
  auto out = layout_tensors(spec, own(config));
  auto bias = TensorSpec::of("bias", {at::kHalf, at::kBFloat16, at::kFloat}, {spec.out_features});
  bias.required = spec.bias;
  bias.finite = true;
  bias.examined = !spec.bias;
  if (!spec.bias) bias.bytes = 0;
  out.push_back(std::move(bias));
  return out;
}

std::shared_ptr<const Findings> AwqQuantizer::examine(const ModuleSpec& spec,
                                                      const QuantConfig& config,
                                                      const Tensors& tensors) const {
  constexpr double kLargestHalf = 65504, kMostSteps = 15;
  auto out = std::make_shared<ModuleFindings>();
  const auto& scales = tensors.at("scales");
  if (tensors.find("qzeros")) {
    const auto zeros = read_zeros(tensors, spec.in_features, spec.out_features, own(config));
    out->has_zeros = zeros.defined();
    out->has_offsets = !zeros.defined();
    out->symmetric = zeros.defined() && zeros.eq(kMiddle).all().item<bool>();
  }
  // Columns behind the last group are padding of GEMV.
  const std::int64_t groups = own(config).groups(spec.in_features);
  const int along = own(config).read_as == AwqConfig::Version::gemv ? 1 : 0;
  const auto used = scales.narrow(along, 0, groups);
  out->zero_scales = used.eq(0).sum().item<std::int64_t>();
  out->negative_scales = used.lt(0).sum().item<std::int64_t>();
  const auto dtype = spec.dtype == at::kFloat ? scales.scalar_type() : spec.dtype;
  out->overflows =
      dtype == at::kHalf && used.abs().max().item<double>() * kMostSteps > kLargestHalf;
  if (const auto* bias = tensors.find("bias"); bias && !spec.bias)
    out->stray_bias = bias->ne(0).any().item<bool>() ? ModuleFindings::StrayBias::values
                                                     : ModuleFindings::StrayBias::zeros;
  return out;
}

Settled AwqQuantizer::settle(const QuantConfigPtr& config, std::span<const Examined> modules,
                             Trust trust) const {
  Settled out;
  const auto& given = own(*config);
  const std::size_t all = modules.size();
  std::vector<std::string> varying, offsets, overflowing, negative, zero_biases, biases, absent;
  std::int64_t zero_scales = 0;
  for (const auto& module : modules) {
    const auto& found = dynamic_cast<const ModuleFindings&>(*module.findings);
    const auto& path = module.spec.path;
    if (found.has_zeros && !found.symmetric) varying.push_back(path);
    if (!found.has_zeros && !found.has_offsets) absent.push_back(path);
    if (found.has_offsets) offsets.push_back(path);
    if (found.overflows) overflowing.push_back(path);
    if (found.negative_scales) negative.push_back(path);
    if (found.stray_bias == ModuleFindings::StrayBias::zeros) zero_biases.push_back(path);
    if (found.stray_bias == ModuleFindings::StrayBias::values) biases.push_back(path);
    zero_scales += found.zero_scales;
  }
  if (all)
    out.detected.push_back(std::string(word(given.read_as)) + " layout; zero points " +
                           (varying.empty() && offsets.empty()
                                ? "are 8 everywhere: symmetric"
                                : "vary in " + std::to_string(varying.size() + offsets.size()) +
                                      " modules: asymmetric"));
  const bool conflict = !given.zero_point && (!varying.empty() || !offsets.empty());
  if (conflict && trust == Trust::neither)
    throw Error(ErrorKind::model, "the zero points contradict zero_point, which is false")
        .at("tensor 'qzeros'")
        .at(varying.empty() ? offsets.front() : varying.front())
        .expected("8 everywhere")
        .found("others in " + some(varying.empty() ? offsets : varying, all))
        .hint("give --trust data to use what the tensors say, or --trust label for 8 everywhere");
  auto base = std::make_shared<AwqConfig>(given);
  base->trust = trust;
  out.config = base;
  std::map<const QuantConfig*, QuantConfigPtr> made;
  for (const auto& module : modules) {
    auto& settled = made[module.config.get()];
    if (!settled) {
      auto copy = std::make_shared<AwqConfig>(own(*module.config));
      copy->trust = trust;
      settled = copy;
    }
    out.configs.push_back(settled);
  }
  const auto tell = [&](std::vector<std::string>& list, const std::vector<std::string>& paths,
                        const std::string& text) {
    if (!paths.empty()) list.push_back(text + " (" + some(paths, all) + ")");
  };
  tell(out.notes, absent, "qzeros are missing; zero_point false says that they are 8");
  tell(out.notes, overflowing,
       "weights beyond half precision are kept in float32 and multiplied in it");
  tell(out.notes, offsets, "offsets that are no multiples of the scales: GEMVFast only");
  tell(out.notes, negative, "negative scales");
  tell(out.notes, zero_biases,
       "a bias of zeros that the model does not have: kept for saving, not added");
  tell(out.doubts, biases, "a bias that the model does not have is added, because it is not zero");
  if (conflict)
    out.notes.push_back(std::string("zero_point false contradicts the zero points; --trust ") +
                        (trust == Trust::data ? "data: the tensors decide" : "label: it decides"));
  if (zero_scales)
    out.notes.push_back(std::to_string(zero_scales) + " groups have scale 0: their weights are 0");
  return out;
}

std::shared_ptr<nn::Block> AwqQuantizer::build(const ModuleSpec& spec,
                                               const QuantConfig& config) const {
  return std::make_shared<WQLinear>(spec, own(config));
}

void AwqQuantizer::fill(nn::Block& module, const QuantConfig& config,
                        const Tensors& tensors) const {
  dynamic_cast<WQLinear&>(module).fill(tensors, own(config));
}

GroupResult AwqQuantizer::quantize(const ModuleGroup& group, const Context&) const {
  return quantize_group(group);
}

bool AwqQuantizer::searches_scales(const QuantConfig&) const { return true; }

at::Tensor AwqQuantizer::input_scales(const ModuleGroup& group, const Context&) const {
  return find_input_scales(group);
}

bool AwqQuantizer::moves_codes(const QuantConfig&) const { return true; }

WeightNeighbours AwqQuantizer::neighbours(const nn::Block& module) const {
  return dynamic_cast<const WQLinear&>(module).neighbours();
}

std::shared_ptr<nn::Block> AwqQuantizer::moved(const nn::Block& module, const ModuleSpec& spec,
                                      const QuantConfig& config, const at::Tensor& moves) const {
  return with_moved_codes(module, spec, config, moves);
}

Tensors AwqQuantizer::save(const nn::Block& module, const QuantConfig& config) const {
  return dynamic_cast<const WQLinear&>(module).stored(own(config).version);
}

at::Tensor AwqQuantizer::dequantize(const nn::Block& module) const {
  return dynamic_cast<const WQLinear&>(module).dequantize();
}

}  // namespace graft::awq
