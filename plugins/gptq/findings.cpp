#include "findings.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "graft/error.h"
#include "groups.h"

namespace graft::gptq {
namespace {

using Format = GptqConfig::Format;

const GptqConfig& config_of(const Examined& module) {
  return dynamic_cast<const GptqConfig&>(*module.config);
}
const ModuleFindings& findings_of(const Examined& module) {
  return dynamic_cast<const ModuleFindings&>(*module.findings);
}

/// The format that constant zero points stand for: symmetric ones are 2^(bits-1), stored minus one
/// in v1.
std::optional<Format> format_of(const Examined& module) {
  const auto& found = findings_of(module);
  if (!found.constant) return std::nullopt;
  const unsigned middle = 1U << (config_of(module).bits - 1);
  if (found.zero == middle) return Format::v2;
  if (found.zero == middle - 1) return Format::v1;
  return std::nullopt;
}

/// "3 of 14 modules, first 'model.layers.0.mlp.up_proj'"
std::string some(const std::vector<std::string>& paths, std::size_t all) {
  return std::to_string(paths.size()) + " of " + std::to_string(all) + " modules, first " +
         quote(paths.front());
}

/// What find_groups has to tell of the module's g_idx; throws with the module's path.
std::string group_note(const Examined& module, Trust trust) {
  GptqConfig config = config_of(module);
  config.trust = trust;
  try {
    return find_groups(findings_of(module).g_idx, module.spec.in_features, config).note;
  } catch (Error& error) {
    error.at(module.spec.path);
    throw;
  }
}

const char* label(Format format) { return format == Format::v1 ? "v1" : "v2"; }

}  // namespace

std::shared_ptr<const ModuleFindings> examine_module(const ModuleSpec& spec,
                                                     const GptqConfig& config,
                                                     const Tensors& tensors) {
  auto out = std::make_shared<ModuleFindings>();
  if (const auto* g_idx = tensors.find("g_idx")) out->g_idx = *g_idx;
  if (const auto* qzeros = tensors.find("qzeros")) {
    const auto zeros = qzeros->contiguous();
    const auto* row =
        reinterpret_cast<const std::uint32_t*>(zeros.const_data_ptr<std::int32_t>());
    const unsigned full = (1U << config.bits) - 1U;
    out->constant = zeros.numel() > 0;
    for (std::int64_t g = 0; g < zeros.size(0); ++g, row += zeros.size(1))
      for (std::int64_t n = 0; n < spec.out_features; ++n) {
        const unsigned zero = field(row, 1, n, config.bits);
        if (g == 0 && n == 0) out->zero = zero;
        out->constant = out->constant && zero == out->zero;
        out->has_full = out->has_full || zero == full;
      }
  }
  if (const auto* scales = tensors.find("scales")) {
    out->zero_scales = scales->eq(0).sum().item<std::int64_t>();
    out->negative_scales = scales->lt(0).sum().item<std::int64_t>();
  }
  if (const auto* bias = tensors.find("bias"); bias && !spec.bias)
    out->stray_bias = bias->ne(0).any().item<bool>() ? ModuleFindings::StrayBias::values
                                                     : ModuleFindings::StrayBias::zeros;
  return out;
}

Settled settle_modules(const std::shared_ptr<const GptqConfig>& config,
                       std::span<const Examined> modules, Trust trust) {
  Settled out;
  const std::size_t all = modules.size();
  const bool all_constant = std::all_of(modules.begin(), modules.end(), [](const auto& module) {
    return format_of(module).has_value();
  });
  // Asymmetric zero points may be constant by chance in a module, not in all of them.
  const auto says = [&](const Examined& module) {
    return config_of(module).sym || all_constant ? format_of(module) : std::nullopt;
  };
  std::map<std::optional<Format>, std::vector<std::string>> by_format;
  std::vector<std::string> wrong, full;
  for (const auto& module : modules) {
    const auto found = says(module);
    by_format[found].push_back(module.spec.path);
    if (found && *found != config_of(module).format) wrong.push_back(module.spec.path);
    if (!found && findings_of(module).has_full && config_of(module).format == Format::v1)
      full.push_back(module.spec.path);
  }

  const std::string declared = label(config->format);
  for (const auto& [format, paths] : by_format) {
    if (!format) {
      out.detected.push_back("zero points vary in " + std::to_string(paths.size()) +
                             " modules: v1 and v2 cannot be told apart there, " + declared +
                             " is what the settings say");
      continue;
    }
    const std::string& path = paths.front();
    const auto& first = *std::find_if(modules.begin(), modules.end(), [&](const auto& module) {
      return module.spec.path == path;
    });
    out.detected.push_back(
        "zero points are " + std::to_string(findings_of(first).zero) +
        (paths.size() == all ? " everywhere" : " in " + std::to_string(paths.size()) + " modules") +
        " (" + std::to_string(config_of(first).bits) + " bit): " + label(*format) +
        (*format == config->format
             ? ""
             : "; the label says " + declared + ": every weight would be off by one step"));
  }
  if (!wrong.empty() && trust == Trust::neither) {
    const Format data = config->format == Format::v1 ? Format::v2 : Format::v1;
    throw Error(ErrorKind::model, "the zero points contradict checkpoint_format, every weight would "
                                  "be off by one step")
        .at("tensor 'qzeros'")
        .at(wrong.front())
        .expected(std::string(word(config->format)) + " (" + declared + ") zero points")
        .found("those of " + std::string(word(data)) + " in " + some(wrong, all))
        .hint("give --trust data to read what the tensors say, or --trust label to read what "
              "config.json says");
  }
  const bool relabel = trust == Trust::data && !wrong.empty() && wrong.size() == all;
  auto base = std::make_shared<GptqConfig>(*config);
  base->trust = trust;
  if (relabel) base->format = base->format == Format::v1 ? Format::v2 : Format::v1;
  out.config = base;
  std::map<const QuantConfig*, std::map<Format, QuantConfigPtr>> made;
  for (const auto& module : modules) {
    const auto& own = config_of(module);
    const auto found = trust == Trust::data ? says(module) : std::nullopt;
    const Format read = found.value_or(own.read_as.value_or(own.format));
    auto& settled = made[&own][read];
    if (!settled) {
      auto copy = std::make_shared<GptqConfig>(own);
      copy->trust = trust;
      copy->format = base->format;
      copy->read_as = read;
      settled = copy;
    }
    out.configs.push_back(settled);
  }

  const auto tell = [&](std::vector<std::string>& list, const std::vector<std::string>& paths,
                        const std::string& text) {
    if (!paths.empty()) list.push_back(text + " (" + some(paths, all) + ")");
  };
  const auto note = [&](const std::vector<std::string>& paths, const std::string& text) {
    tell(out.notes, paths, text);
  };
  if (!wrong.empty())
    note(wrong, std::string("checkpoint_format contradicts the zero points; --trust ") +
                    (trust == Trust::data ? "data: the tensors decide" : "label: it decides"));
  if (!config->names_its_zeros && !modules.empty())
    out.notes.push_back("the settings do not say sym; true is assumed");
  tell(out.doubts, full, config->unmasked_zeros
                 ? "AutoGPTQ wrote zero points of all ones; they mean 2^bits, as in its run time"
                 : "asymmetric v1 zero points of all ones: 0 is read, as GPTQModel writes it; "
                   "AutoGPTQ would have lost their neighbours");
  std::map<std::string, std::vector<std::string>> group_notes;
  std::vector<std::string> zero_biases, biases, negative;
  std::int64_t zero_scales = 0;
  for (const auto& module : modules) {
    const auto& found = findings_of(module);
    if (const auto text = group_note(module, trust); !text.empty())
      group_notes[text].push_back(module.spec.path);
    if (found.stray_bias == ModuleFindings::StrayBias::zeros)
      zero_biases.push_back(module.spec.path);
    if (found.stray_bias == ModuleFindings::StrayBias::values) biases.push_back(module.spec.path);
    if (found.negative_scales) negative.push_back(module.spec.path);
    zero_scales += found.zero_scales;
  }
  for (const auto& [text, paths] : group_notes) note(paths, text);
  note(zero_biases,
       "a bias of zeros that the model does not have, as AutoGPTQ wrote: kept for saving, not added");
  tell(out.doubts, biases, "a bias that the model does not have is added, because it is not zero");
  note(negative, "negative scales");
  if (zero_scales)
    out.notes.push_back(std::to_string(zero_scales) + " groups have scale 0: their weights are 0");
  return out;
}

}  // namespace graft::gptq
