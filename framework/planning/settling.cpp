#include "planning/settling.h"

#include <ATen/ATen.h>

#include <map>

#include "graft/error.h"
#include "planning/planner.h"
#include "plugins/call.h"

namespace graft {
namespace {

struct Group {
  const Quantizer* quantizer = nullptr;
  std::vector<Examined> modules;
  std::vector<PlanEntry*> entries;
};

Tensors read_examined(const PlanEntry& entry, const Checkpoint& checkpoint) {
  Tensors tensors;
  for (const auto& planned : entry.tensors) {
    if (!planned.examined) continue;
    const TensorInfo& info = checkpoint.at(planned.source);
    auto tensor = at::empty(info.shape, at::TensorOptions(scalar_type(info.dtype)));
    checkpoint.read(info, tensor.mutable_data_ptr());
    if (planned.finite) require_finite(tensor, planned.source);
    tensors.set(planned.name, std::move(tensor));
  }
  return tensors;
}

}  // namespace

void require_finite(const at::Tensor& tensor, const std::string& name) {
  const auto flat = tensor.reshape({-1});
  const auto good = at::isfinite(flat);
  if (good.all().item<bool>()) return;
  auto rest = good.logical_not().nonzero()[0].item<std::int64_t>();
  const double value = flat[rest].to(at::kDouble).item<double>();
  std::string position;
  for (auto d = tensor.dim(); d-- > 0; rest /= tensor.size(d))
    position = std::to_string(rest % tensor.size(d)) + (position.empty() ? "" : ", ") + position;
  throw Error(ErrorKind::model, "the tensor holds a number that is not finite")
      .at("tensor " + quote(name))
      .expected("finite numbers")
      .found((value != value ? "NaN" : value < 0 ? "-infinity" : "infinity") +
             std::string(" at [") + position + "]")
      .hint("download the file again, or give --allow-nonfinite");
}

QuantConfigPtr settle_plan(Plan& plan, const Checkpoint& checkpoint, const QuantConfigPtr& base,
                           Trust trust, const Context& context) {
  std::map<std::string, Group> groups;  // by plugin
  const std::uint64_t total = plan.count(Action::quantize);
  std::uint64_t done = 0;
  for (auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    context.advance("examine", done++, total);
    Group& group = groups[entry.plugin];
    group.quantizer = entry.quantizer;
    group.entries.push_back(&entry);
    const Tensors tensors = read_examined(entry, checkpoint);
    auto findings = call_plugin(entry.plugin, entry.spec.path, [&] {
      return entry.quantizer->examine(entry.spec, *entry.config, tensors);
    });
    group.modules.push_back({entry.spec, entry.config, std::move(findings)});
  }
  QuantConfigPtr settled_base = base;
  for (auto& [plugin, group] : groups) {
    const auto& config = plugin == plan.plugin && base ? base : group.modules.front().config;
    Settled settled = call_plugin(plugin, "quantization_config", [&, &members = group] {
      return members.quantizer->settle(config, members.modules, trust);
    });
    if (!settled.config || settled.configs.size() != group.entries.size())
      throw Error(ErrorKind::plugin, "the plugin " + plugin + " settled another number of modules");
    const auto summary_of = [&, &id = plugin](const QuantConfigPtr& one) {
      return call_plugin(id, "quantization_config", [&] { return one->summary(); });
    };
    for (std::size_t i = 0; i < group.entries.size(); ++i) {
      group.entries[i]->config = require_config(settled.configs[i], plugin);
      group.entries[i]->settings = summary_of(settled.configs[i]);
    }
    if (plugin == plan.plugin) {
      settled_base = settled.config;
      plan.settings = summary_of(settled_base);
    }
    const auto append = [](std::vector<std::string>& to, std::vector<std::string>& from) {
      to.insert(to.end(), std::make_move_iterator(from.begin()),
                std::make_move_iterator(from.end()));
    };
    append(plan.detected, settled.detected);
    append(plan.notes, settled.notes);
    append(plan.doubts, settled.doubts);
  }
  return settled_base;
}

}  // namespace graft
