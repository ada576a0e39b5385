#include "registry/registry.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "cli/program.h"
#include "graft/module_graph.h"

namespace graft::cli {
namespace {

Value to_value(const Rule& rule) {
  Value row;
  row.set("class", rule.module_class);
  Value::Array methods(rule.methods.begin(), rule.methods.end());
  row.set("methods", std::move(methods));
  if (!rule.replacement.empty()) row.set("replacement", rule.replacement);
  if (rule.keep) row.set("keep", *rule.keep);
  if (!rule.plugin.empty()) row.set("plugin", rule.plugin);
  if (!rule.device.empty()) row.set("device", rule.device);
  if (rule.priority) row.set("priority", static_cast<std::int64_t>(*rule.priority));
  row.set("origin", rule.origin.text());
  return row;
}

void list(Program& program) {
  const Registry& registry = program.host().registry();
  if (program.globals.json) {
    Value result;
    Value::Array rules, claims;
    for (const auto& rule : registry.rules()) rules.push_back(to_value(rule));
    for (const auto& claim : registry.claims()) {
      Value row;
      row.set("plugin", claim.plugin_id);
      row.set("method", claim.method);
      row.set("class", claim.module_class);
      row.set("device", claim.device);
      row.set("priority", static_cast<std::int64_t>(claim.priority));
      claims.push_back(std::move(row));
    }
    result.set("rules", std::move(rules));
    result.set("claims", std::move(claims));
    Value::Object aliases;
    for (const auto& [from, to] : registry.aliases()) aliases.emplace_back(from, to);
    result.set("aliases", std::move(aliases));
    Value::Array skips(registry.skips().begin(), registry.skips().end());
    result.set("skip", std::move(skips));
    program.print_json(result);
    return;
  }
  for (const auto& claim : registry.claims())
    std::printf("claim  %-14s %-12s %-5s priority %-4d %s\n", claim.method.c_str(),
                claim.module_class.c_str(), claim.device.c_str(), claim.priority,
                claim.plugin_id.c_str());
  for (const auto& rule : registry.rules())
    std::printf("rule   %-26s %s  (%s)\n", rule.module_class.c_str(),
                rule.keep                  ? ("keep: " + *rule.keep).c_str()
                : rule.replacement.empty() ? ("plugin " + rule.plugin).c_str()
                                           : ("-> " + rule.replacement).c_str(),
                rule.origin.text().c_str());
  for (const auto& [from, to] : registry.aliases())
    std::printf("alias  %s = %s\n", from.c_str(), to.c_str());
  for (const auto& skip : registry.skips()) std::printf("skip   %s\n", skip.c_str());
}

/// Rules whose replacement neither the host builds nor a plugin that claims the class.
std::vector<std::string> unbuilt(const Host& host) {
  std::vector<std::string> out;
  const auto known = host.replacements();
  for (const auto& rule : host.registry().rules()) {
    if (rule.replacement.empty() || host.builds(rule.replacement)) continue;
    const auto& claims = host.registry().claims();
    if (std::any_of(claims.begin(), claims.end(), [&](const ClaimRow& claim) {
          return claim.module_class == rule.module_class;
        }))
      continue;
    std::string note = rule.origin.text() + ": nobody here builds the replacement " +
                       quote(rule.replacement) + " for the class " + quote(rule.module_class);
    if (const auto near = nearest_names(rule.replacement, known); !near.empty())
      note += "; did you mean " + near + "?";
    out.push_back(std::move(note));
  }
  return out;
}

void check(Program& program) {
  auto notes = program.host().registry().notes();
  for (auto& note : unbuilt(program.host())) notes.push_back(std::move(note));
  if (program.globals.json) {
    Value result;
    result.set("notes", Value::Array(notes.begin(), notes.end()));
    program.print_json(result);
  } else if (notes.empty()) {
    std::printf("no mistakes\n");
  } else {
    for (const auto& note : notes) std::printf("%s\n", note.c_str());
  }
  if (!notes.empty())
    throw Error(ErrorKind::plugin, std::to_string(notes.size()) + " remark(s) on the registry");
}

struct Explain {
  std::string model, path, method;
};

/// What is planned for the model under the method; by default, and for its own, as its config says.
Plan plan_for(Program& program, const Checkpoint& checkpoint, const std::string& method) {
  LoadOptions options;
  options.device = program.device();
  options.context = program.context();
  const Value* own = quantization_config_of(checkpoint.config());
  if (!method.empty() && (!own || own->get_string("quant_method", "") != method)) {
    options.quantization_config = Value(Value::Object{{"quant_method", method}});
    options.ignore_quantization_config = true;
  } else if (!own) {
    throw Error(ErrorKind::usage, "the model is not quantized, so the method must be named")
        .hint("add --method");
  }
  return program.host().plan(checkpoint, options);
}

/// The class of the module at `path`; what a restructuring makes is there once it was planned.
std::string class_at(const Host& host, const std::shared_ptr<Model>& model,
                     const std::string& method, const std::string& path) {
  const auto modules = named_modules(model);
  if (std::none_of(modules.begin(), modules.end(),
                   [&](const NamedModule& module) { return module.path == path; }))
    ModelQuantizer::from_config(host, Value(Value::Object{{"quant_method", method}}), false)
        .make_plan(model);
  const auto [parent, name] = get_module_from_name(model, path);
  return class_name_of(**parent->named_children().find(name));
}

const PlanEntry* entry_at(const Plan& plan, const std::string& path) {
  for (const auto& entry : plan.entries)
    if (entry.spec.path == path ||
        std::find(entry.also.begin(), entry.also.end(), path) != entry.also.end())
      return &entry;
  return nullptr;
}

void explain(Program& program, const Explain& given) {
  OpenOptions open;
  open.weights_optional = true;
  const Checkpoint checkpoint = Checkpoint::open(find_model(given.model), open);
  const Plan plan = plan_for(program, checkpoint, given.method);
  const std::string& method = plan.method;
  const auto model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta));
  const std::string module_class = class_at(program.host(), model, method, given.path);
  Decision decision = program.host().registry().decide(
      {method, module_class, given.path,
       plan.devices.of(given.path).value_or(at::kCPU).is_cuda() ? "cuda" : "cpu"});
  // Skip lists, ties and what the checkpoint holds may decide otherwise than claims and rules.
  if (const PlanEntry* entry = entry_at(plan, given.path)) {
    const bool dense = decision.kind == Decision::Kind::none || decision.kind == Decision::Kind::keep;
    if (dense != (entry->action == Action::keep)) {
      for (const auto& claim : dense ? std::vector<ClaimRow>() : decision.claims)
        decision.losers.push_back({claim.plugin_id, "the module is left out"});
      decision.reason = entry->reason;
      decision.kind = dense ? Decision::Kind::claims : Decision::Kind::keep;
    }
  }
  Value result;
  result.set("path", given.path);
  result.set("class", module_class);
  result.set("method", method);
  switch (decision.kind) {
    case Decision::Kind::none:
      result.set("decision", "left as it is");
      break;
    case Decision::Kind::keep:
      result.set("decision", "kept dense");
      break;
    case Decision::Kind::replace:
      result.set("decision", "replaced by " + decision.rule->replacement);
      break;
    case Decision::Kind::claims:
      result.set("decision", "built by " + decision.claims.front().plugin_id);
      break;
  }
  result.set("reason", decision.reason);
  Value::Array losers;
  for (const auto& loser : decision.losers)
    losers.push_back(Value(loser.who + ": " + loser.reason));
  for (std::size_t i = 1; decision.kind == Decision::Kind::claims && i < decision.claims.size(); ++i)
    losers.push_back(Value(decision.claims[i].plugin_id + ": comes later, priority " +
                           std::to_string(decision.claims[i].priority)));
  result.set("others", losers);
  if (program.globals.json) {
    program.print_json(result);
    return;
  }
  std::printf("%s, a %s, under %s: %s\nbecause %s\n", printable(given.path).c_str(),
              module_class.c_str(), method.c_str(), result.at("decision").as_string().c_str(),
              printable(decision.reason).c_str());
  for (const auto& loser : losers)
    std::printf("not %s\n", printable(loser.as_string()).c_str());
}

}  // namespace

void add_registry(CLI::App& app, Program& program) {
  auto* verb = app.add_subcommand("registry", "The rules that decide what replaces what");
  auto* checking = verb->add_subcommand("check", "Mistakes in the rules");
  checking->callback([&program] { check(program); });
  verb->add_subcommand("list", "Rules in force, with file and line (the default)");
  auto* explaining = verb->add_subcommand("explain", "Who wins for a module and why");
  auto given = std::make_shared<Explain>();
  explaining->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  explaining->add_option("PATH", given->path, "Such as model.layers.0.mlp.up_proj")->required();
  explaining->add_option("--method", given->method, "Default: as the model's config says");
  explaining->callback([given, &program] { explain(program, *given); });
  verb->require_subcommand(0, 1);
  for (auto* sub : verb->get_subcommands({})) sub->fallthrough();
  verb->callback([checking, explaining, &program] {
    if (!checking->parsed() && !explaining->parsed()) list(program);
  });
}

}  // namespace graft::cli
