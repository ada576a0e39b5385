#include "planning/planner.h"

#include <algorithm>
#include <map>
#include <set>

#include "graft/error.h"
#include "graft/module_graph.h"
#include "plugins/call.h"
#include "planning/source_names.h"
#include "registry/name_match.h"

namespace graft {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

class Planner {
 public:
  Planner(const std::shared_ptr<nn::Block>& root, const PlanRequest& request)
      : root_(root), request_(request), source_(request.checkpoint, prefixes(*root)) {
    plan_.method = request.method.name;
    plan_.plugin = request.method.plugin_id;
    if (const auto& config = request.method.config) {
      plan_.settings = config->summary();
      for (const auto& field : config->unknown_fields) plan_.unknown.push_back(quote(field));
    }
    plan_.pre_quantized = request.pre_quantized;
    plan_.dtype = request.dtype;
    if (const auto* model = dynamic_cast<const Model*>(root.get()))
      for (const auto& tied : model->tied_tensors()) tied_.emplace(tied.alias, tied.owner);
    for (const auto& [alias, owner] : tied_) tied_owners_.insert(owner);
    if (request.method.config && request.registry)
      skip_.emplace(request.registry->skip_names(request.method.config->skip));
    configs_.emplace(request.method.plugin_id, request.method.config);
  }

  Plan run() {
    try {
      visit("", root_);
    } catch (...) {
      for (auto done = restructured_.rbegin(); done != restructured_.rend(); ++done)
        replace_at(root_, done->first, done->second);
      throw;
    }
    for (const auto& [alias, owner] : tied_) plan_.tied.push_back(alias);
    for (const auto* info : source_.rest()) {
      plan_.unexpected.push_back(quote(info->name));
      plan_.bytes_unused += info->bytes;
    }
    note_unmatched();
    if (request_.checkpoint) plan_.bytes_in_checkpoint = request_.checkpoint->total_bytes();
    if (plan_.bytes_taken() + plan_.bytes_unused != plan_.bytes_in_checkpoint)
      throw Error(ErrorKind::internal, "the plan does not account for every byte of the checkpoint")
          .expected(std::to_string(plan_.bytes_in_checkpoint))
          .found(std::to_string(plan_.bytes_taken()) + " taken and " +
                 std::to_string(plan_.bytes_unused) + " unused");
    if (request_.method.quantizer && plan_.count(Action::quantize) == 0)
      plan_.notes.push_back("no module is quantized");
    return std::move(plan_);
  }

 private:
  static std::vector<std::string> prefixes(const nn::Block& root) {
    const auto* model = dynamic_cast<const Model*>(&root);
    return model ? model->checkpoint_prefixes() : std::vector<std::string>{};
  }

  void visit(const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    if (const auto seen = seen_.find(module.get()); seen != seen_.end()) {
      if (seen->second == kNoEntry) return;
      PlanEntry& entry = plan_.entries[seen->second];
      if (entry.action == Action::restructure)
        restructured_.emplace_back(path, replace_at(root_, path, module_at(entry.spec.path)));
      entry.also.push_back(path);
      return;
    }
    seen_.emplace(module.get(), kNoEntry);
    paths_.push_back(path);
    const auto* block = dynamic_cast<const nn::Block*>(module.get());
    if (!block) {
      for (const auto& child : module->named_children())
        visit(join(path, child.key()), child.value());
      return;
    }

    PlanEntry entry;
    block->describe(entry.spec);
    entry.spec.path = path;
    entry.spec.device = request_.device;
    if (request_.method.quantizer && decide(entry)) {
      if (path.empty()) refuse_root(entry);
      if (entry.action == Action::restructure) {
        seen_[module.get()] = plan_.entries.size();
        plan_.entries.push_back(std::move(entry));
        ++depth_;
        visit_children(path, module_at(path));
        --depth_;
        return;
      }
      seen_[module.get()] = plan_.entries.size();
      take_quantized(entry);
      plan_.entries.push_back(std::move(entry));
      return;
    }
    if (!block->own_tensors().empty()) {
      seen_[module.get()] = plan_.entries.size();
      take_dense(entry, *block);
      plan_.entries.push_back(std::move(entry));
    }
    visit_children(path, module);
  }

  std::shared_ptr<torch::nn::Module> module_at(const std::string& path) const {
    return *get_module_from_name(root_, path).parent->named_children().find(last(path));
  }

  void visit_children(const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    for (const auto& child : module->named_children())
      visit(join(path, child.key()), child.value());
  }

  [[noreturn]] static void refuse_root(const PlanEntry& entry) {
    throw Error(ErrorKind::usage, "the root of the model, a " + entry.spec.class_name +
                                      ", cannot be replaced: nobody would hold the replacement")
        .hint("put it into a graft::nn::Slot of a block of your own");
  }

  void note_unmatched() {
    if (skip_)
      for (const auto& name : skip_->unmatched()) {
        std::string text = "the skip entry " + quote(name) + " matches no module";
        if (const auto near = nearest_names(name, paths_); !near.empty())
          text += "; did you mean " + near + "?";
        plan_.unmatched.push_back(std::move(text));
      }
    if (request_.method.quantizer)
      for (auto& text : request_.registry->unmatched_rules(paths_))
        plan_.unmatched.push_back(std::move(text));
  }

  /// True when the module is to be replaced; else entry.reason says why not.
  bool decide(PlanEntry& entry) {
    if (request_.predicate && !request_.predicate(entry.spec))
      return keep(entry, "left out by the caller");
    // Asked of every module, so that the list knows which of its entries matched.
    const auto skipped = skip_ ? skip_->match(entry.spec.path) : std::nullopt;
    const bool tied = tied_.contains(entry.spec.path + ".weight");
    if (tied) return keep(entry, "tied to " + tied_.at(entry.spec.path + ".weight"));
    if (tied_owners_.contains(entry.spec.path + ".weight")) return keep(entry, "tied weight");
    const bool by_tensors = request_.pre_quantized && source_.known();
    const Decision decision = request_.registry->decide(
        {request_.method.name, entry.spec.class_name, entry.spec.path, device_word(), by_tensors});
    if (decision.kind == Decision::Kind::keep) return keep(entry, decision.reason);
    if (decision.kind == Decision::Kind::none) return keep(entry, decision.reason);
    if (!by_tensors && skipped) return keep(entry, "skip list: " + quote(*skipped));
    if (decision.kind == Decision::Kind::replace) return replace(entry, decision, by_tensors);
    if (!decision.resolved_class.empty()) entry.spec.class_name = decision.resolved_class;
    return choose(entry, decision, by_tensors);
  }

  static bool keep(PlanEntry& entry, std::string reason) {
    entry.reason = std::move(reason);
    return false;
  }

  /// What a rule names is restructured by a builder, or quantized by a plugin that makes the class.
  bool replace(PlanEntry& entry, const Decision& decision, bool by_tensors) {
    const std::string& name = decision.rule->replacement;
    if (const auto build = request_.restructures ? request_.restructures(name) : Restructure{}) {
      restructure(entry, decision, build);
      return true;
    }
    Decision builders = decision;
    std::erase_if(builders.claims, [&](const ClaimRow& claim) {
      const Quantizer* quantizer = request_.quantizers(claim.plugin_id, request_.method.name);
      return !quantizer || call_plugin(claim.plugin_id, entry.spec.path, [&] {
               return quantizer->replacement_class(
                          entry.spec, *config_for(claim.plugin_id, *quantizer, decision.options)) !=
                      name;
             });
    });
    if (builders.claims.empty())
      throw Error(ErrorKind::plugin, "nobody builds the replacement " + quote(name) + " for the " +
                                         entry.spec.class_name + " at " + quote(entry.spec.path))
          .at(decision.rule->origin.text())
          .hint("install the plugin that builds it, or register it with Host::add_replacement");
    return choose(entry, builders, by_tensors);
  }

  void restructure(PlanEntry& entry, const Decision& decision, const Restructure& build) {
    if (entry.spec.path.empty()) refuse_root(entry);
    if (depth_ >= kDeepest)
      throw Error(ErrorKind::plugin, "replacements are nested deeper than " +
                                         std::to_string(kDeepest) + ": a " +
                                         quote(decision.rule->replacement) + " contains a " +
                                         entry.spec.class_name)
          .at(entry.spec.path)
          .at(decision.rule->origin.text());
    for (const auto& parameter : module_at(entry.spec.path)->parameters())
      if (!parameter.is_meta())
        throw Error(ErrorKind::usage, "a " + entry.spec.class_name +
                                          " with weights in memory cannot be restructured")
            .at(entry.spec.path)
            .at(decision.rule->origin.text())
            .hint("convert the skeleton on meta and load the weights afterwards");
    const auto* model = dynamic_cast<const Model*>(root_.get());
    restructured_.emplace_back(
        entry.spec.path,
        replace_at(root_, entry.spec.path,
                   build(entry.spec, model ? model->text_config() : Value(Value::Object{}))));
    entry.action = Action::restructure;
    entry.replacement = decision.rule->replacement;
    entry.reason = decision.rule->origin.text();
  }

  bool choose(PlanEntry& entry, const Decision& decision, bool by_tensors) {
    if (by_tensors && decision.claims.empty()) return keep(entry, decision.reason);
    std::string reasons;
    for (const auto& claim : decision.claims) {
      const Quantizer* quantizer = request_.quantizers(claim.plugin_id, request_.method.name);
      if (!quantizer) continue;
      const auto call = [&](auto&& ask) -> decltype(auto) {
        return call_plugin(claim.plugin_id, entry.spec.path, ask);
      };
      const auto base = call([&] { return config_for(claim.plugin_id, *quantizer, decision.options); });
      const auto config = call([&] { return base->for_module(entry.spec.path); });
      if (by_tensors &&
          !call([&] { return is_quantized(entry.spec, *quantizer, config ? *config : *base); }))
        return keep(entry, "dense in the checkpoint");
      if (!config && !by_tensors) return keep(entry, "the settings leave it dense");
      const auto& settings = config ? config : base;
      const Support support = call([&] { return quantizer->supports(entry.spec, *settings); });
      if (!support.yes) {
        reasons += (reasons.empty() ? "" : "; ") + claim.plugin_id + ": " + support.reason;
        continue;
      }
      entry.action = Action::quantize;
      entry.plugin = claim.plugin_id;
      entry.kernel = support.kernel;
      entry.settings = call([&] { return settings->summary(); });
      entry.quantizer = quantizer;
      entry.config = settings;
      entry.replacement = call([&] { return quantizer->replacement_class(entry.spec, *settings); });
      entry.reason = decision.rule ? decision.rule->origin.text() : "claimed by " + claim.plugin_id;
      return true;
    }
    if (by_tensors)
      throw Error(ErrorKind::model,
                  "the checkpoint's quantized module cannot be loaded: " + reasons)
          .at(entry.spec.path);
    entry.unsupported = !reasons.empty();
    return keep(entry, reasons.empty() ? decision.reason : "unsupported: " + reasons);
  }

  QuantConfigPtr config_for(const std::string& plugin_id, const Quantizer& quantizer,
                            const Value& options) {
    if (options.is_object() && !options.as_object().empty()) {
      Value merged = request_.method.settings;
      for (const auto& [key, value] : options.as_object()) merged.set(key, value);
      return quantizer.parse(merged);
    }
    auto& config = configs_[plugin_id];
    if (!config) config = quantizer.parse(request_.method.settings);
    return config;
  }

  /// The tensors present decide: those that a dense module does not have mark a quantized one. With
  /// neither a dense weight nor any of them the settings are believed, and what is missing is
  /// reported.
  bool is_quantized(const ModuleSpec& spec, const Quantizer& quantizer,
                    const QuantConfig& config) const {
    for (const auto& tensor : quantizer.tensors(spec, config))
      if (tensor.name != "weight" && tensor.name != "bias" &&
          source_.find(join(spec.path, tensor.name)))
        return true;
    return !source_.find(join(spec.path, "weight"));
  }

  void take_quantized(PlanEntry& entry) {
    const auto& spec = entry.spec;
    const auto element = static_cast<std::uint64_t>(c10::elementSize(request_.dtype));
    const auto weights = static_cast<std::uint64_t>(spec.in_features) *
                         static_cast<std::uint64_t>(spec.out_features);
    entry.bytes_before =
        (weights + (spec.bias ? static_cast<std::uint64_t>(spec.out_features) : 0)) * element;
    const auto specs = call_plugin(entry.plugin, spec.path,
                                   [&] { return entry.quantizer->tensors(spec, *entry.config); });
    for (const auto& tensor : specs) entry.bytes_after += tensor.bytes;
    if (!source_.known()) return;
    if (!request_.pre_quantized) {
      take(entry, "weight", {spec.out_features, spec.in_features}, true);
      if (spec.bias) take(entry, "bias", {spec.out_features}, true);
      return;
    }
    entry.bytes_after = 0;
    for (const auto& tensor : specs) {
      const auto* info = source_.find(join(spec.path, tensor.name));
      if (!info) {
        if (tensor.required) plan_.missing.push_back(quote(join(spec.path, tensor.name)));
        continue;
      }
      if (!tensor.dtypes.empty() && std::find(tensor.dtypes.begin(), tensor.dtypes.end(),
                                              scalar_type(info->dtype)) == tensor.dtypes.end())
        plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                                   ", expected " +
                                   std::string(name_of(dtype_of(tensor.dtypes.front()))));
      else if (tensor.shape && *tensor.shape != info->shape)
        plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                                   ", expected " + shape_text(*tensor.shape));
      add(entry, tensor.name, info);
      entry.bytes_after += info->bytes;
    }
  }

  void take_dense(PlanEntry& entry, const nn::Block& block) {
    const auto element = [&](const at::Tensor& t) {
      return static_cast<std::uint64_t>(t.numel()) *
             c10::elementSize(t.is_floating_point() ? request_.dtype : t.scalar_type());
    };
    for (const auto& [name, tensor] : block.own_tensors()) {
      const std::string full = join(entry.spec.path, name);
      if (tied_.contains(full)) {
        if (const auto* info = source_.find(full)) {
          source_.take(info);
          plan_.bytes_unused += info->bytes;
          plan_.notes.push_back(quote(full) +
                                " is in the checkpoint although the config ties it to " +
                                quote(tied_.at(full)) + ", which is used");
        }
        if (entry.reason.empty()) entry.reason = "tied to " + tied_.at(full);
        continue;
      }
      entry.bytes_before += element(tensor);
      entry.bytes_after += element(tensor);
      if (source_.known())
        take(entry, name, tensor.sizes().vec(), tensor.is_floating_point());
    }
    if (entry.reason.empty()) entry.reason = "no method";
  }

  void take(PlanEntry& entry, const std::string& name, const std::vector<std::int64_t>& shape,
            bool float_only) {
    const std::string full = join(entry.spec.path, name);
    const auto* info = source_.find(full);
    if (!info) {
      plan_.missing.push_back(quote(full));
      return;
    }
    if (info->shape != shape)
      plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                                 ", expected " + shape_text(shape));
    else if (float_only && !is_float(info->dtype))
      plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                                 ", expected a float type");
    add(entry, name, info);
  }

  void add(PlanEntry& entry, const std::string& name, const TensorInfo* info) {
    source_.take(info);
    entry.tensors.push_back({name, info->name, info->bytes});
  }

  std::string device_word() const { return request_.device.is_cuda() ? "cuda" : "cpu"; }
  static std::string join(const std::string& path, const std::string& name) {
    return path.empty() ? name : path + "." + name;
  }
  static std::string last(const std::string& path) {
    const auto dot = path.rfind('.');
    return dot == std::string::npos ? path : path.substr(dot + 1);
  }

  static constexpr std::size_t kDeepest = 16;
  static constexpr std::size_t kNoEntry = static_cast<std::size_t>(-1);
  std::shared_ptr<nn::Block> root_;
  const PlanRequest& request_;
  SourceNames source_;
  Plan plan_;
  std::map<std::string, std::string> tied_;  // alias -> owner
  std::set<std::string> tied_owners_;
  std::optional<SkipNames> skip_;
  std::map<std::string, QuantConfigPtr> configs_;  // by plugin
  std::map<const torch::nn::Module*, std::size_t> seen_;
  std::vector<std::string> paths_;
  std::size_t depth_ = 0;  // of restructured modules in restructured modules
  /// What was taken out of the model, to be put back when planning fails.
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> restructured_;
};

}  // namespace

Plan make_plan(const std::shared_ptr<nn::Block>& root, const PlanRequest& request) {
  return Planner(root, request).run();
}

}  // namespace graft
