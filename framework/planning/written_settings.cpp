#include "planning/written_settings.h"

#include <set>

#include "graft/quantizer.h"
#include "plugins/call.h"

namespace graft {

const Quantizer* quantizer_of(const Plan& plan) {
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize && entry.plugin == plan.plugin) return entry.quantizer;
  return nullptr;
}

Value written_settings(const Plan& plan, const QuantConfig& config) {
  const Quantizer* quantizer = quantizer_of(plan);
  if (!quantizer) return {};
  std::vector<PlannedModule> modules;
  for (const auto& entry : plan.entries) {
    const bool kept = entry.action == Action::keep && entry.dense != PlanEntry::Dense::unclaimed;
    // What another plugin makes has settings of that plugin's own type.
    const bool made = entry.action == Action::quantize && entry.quantizer == quantizer;
    if (!kept && !made) continue;
    PlannedModule module;
    module.names.push_back(entry.spec.path);
    if (!entry.source_path.empty() && entry.source_path != entry.spec.path)
      module.names.push_back(entry.source_path);
    if (made) module.config = entry.config;
    module.usual = kept && entry.dense == PlanEntry::Dense::usual;
    module.below = kept && entry.spec.in_features == 0;
    modules.push_back(std::move(module));
  }
  // Towers are written dense. Some readers have them below "model.", whatever the file says.
  constexpr std::string_view kPrefix = "model.";
  std::set<std::string> parts;
  for (const auto& unloaded : plan.unloaded) {
    if (!unloaded.carried) continue;
    const auto& name = unloaded.part;
    const std::string bare = name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
    if (parts.insert(bare).second)
      modules.push_back({{bare, std::string(kPrefix) + bare}, nullptr, false, true});
  }
  return call_plugin(plan.plugin, "quantization_config",
                     [&] { return quantizer->describe_modules(config, modules); });
}

}  // namespace graft
