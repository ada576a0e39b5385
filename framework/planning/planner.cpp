#include "planning/planner.h"

#include <algorithm>
#include <map>
#include <set>

#include "applying/restructure.h"
#include "applying/swaps.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "graft/module_rules.h"
#include "graft/nn/experts.h"
#include "host_state.h"
#include "planning/source.h"
#include "planning/tensor_planner.h"
#include "planning/written_settings.h"
#include "plugins/call.h"
#include "registry/name_match.h"

namespace graft {
namespace {

class Planner {
 public:
  Planner(const std::shared_ptr<nn::Block>& root, const PlanRequest& request)
      : root_(root),
        model_(dynamic_cast<const Model*>(root.get())),
        request_(request),
        source_(request.checkpoint, model_),
        tensors_(request, source_, tied_, plan_) {
    plan_.method = request.method.name;
    plan_.plugin = request.method.plugin_id;
    if (request.method.config)
      plan_.settings = call_plugin(plan_.plugin, "quantization_config",
                                   [&] { return request.method.config->summary(); });
    plan_.pre_quantized = request.pre_quantized;
    plan_.dtype = request.dtype;
    plan_.devices = request.devices;
    if (model_)
      for (const auto& tied : model_->tied_tensors()) tied_.emplace(tied.alias, tied.owner);
    for (const auto& [alias, owner] : tied_) tied_owners_.insert(owner);
    if (request.method.config && request.registry)
      skip_.emplace(request.registry->skip_names(request.method.config->skip));
    configs_.emplace(request.method.plugin_id, request.method.config);
    if (request.before)
      for (const auto& entry : request.before->entries) tensors_.derive(entry);
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
    source_.rest(plan_.unloaded, plan_.unexpected);
    note_unmatched();
    plan_.bytes_unused += source_.bytes_left();
    if (request_.checkpoint) plan_.bytes_in_checkpoint = request_.checkpoint->total_bytes();
    if (!dense_after_all_.empty())
      plan_.notes.push_back("the settings say quantized, but the checkpoint is dense: " +
                            some(dense_after_all_));
    if (!quantized_after_all_.empty())
      plan_.notes.push_back("the settings say dense, but the checkpoint is quantized: " +
                            some(quantized_after_all_));
    for (const auto& field : unknown_options_)
      plan_.doubts.push_back("nobody uses the option " + quote(field) + " of a registry rule");
    if (request_.method.config)
      for (const auto& field : request_.method.config->unknown_fields)
        plan_.doubts.push_back("nobody uses the field " + quote(field) +
                               " of the quantization_config");
    if (request_.method.quantizer && !request_.pre_quantized &&
        call_plugin(plan_.plugin, "its defaults", [&] {
          return request_.method.quantizer->pre_quantized_by_default() &&
                 request_.method.quantizer->calibration(*request_.method.config) ==
                     CalibrationUse::none;
        }))
      plan_.notes.push_back("the plugin only loads models that " + plan_.method +
                            " has quantized: this plan of a dense one cannot be carried out");
    if (request_.method.quantizer && plan_.count(Action::quantize) == 0)
      plan_.notes.push_back("no module is quantized");
    if (request_.method.quantizer && !request_.pre_quantized) note_unwritable();
    // Where tensors are missing or do not fit, the plan is refused for that.
    const bool whole = plan_.missing.empty() && plan_.mismatched.empty();
    if (whole && plan_.bytes_taken() + plan_.bytes_unused != plan_.bytes_in_checkpoint)
      throw Error(ErrorKind::internal, "the plan does not account for every byte of the checkpoint")
          .expected(std::to_string(plan_.bytes_in_checkpoint))
          .found(std::to_string(plan_.bytes_taken()) + " taken and " +
                 std::to_string(plan_.bytes_unused) + " unused");
    return std::move(plan_);
  }

 private:
  void visit(const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    if (const auto seen = seen_.find(module.get()); seen != seen_.end()) {
      if (seen->second == kNoEntry) return;
      PlanEntry& entry = plan_.entries[seen->second];
      if (entry.action == Action::restructure)
        restructured_.emplace_back(path, replace_at(root_, path, module_at(root_, entry.spec.path)));
      entry.also.push_back(path);
      return;
    }
    seen_.emplace(module.get(), kNoEntry);
    paths_.push_back(path);
    const auto* block = dynamic_cast<const nn::Block*>(module.get());
    if (!block) {
      keep_foreign(path, *module);
      visit_children(path, module);
      return;
    }

    PlanEntry entry;
    block->describe(entry.spec);
    entry.spec.path = path;
    entry.spec.device = request_.devices.of(path).value_or(at::kCPU);
    // What the weights of a quantized checkpoint stand for does not depend on what it is run in.
    if (request_.pre_quantized && source_.known())
      entry.spec.dtype = model_dtype(*request_.checkpoint);
    if (request_.method.quantizer && decide(entry, *block)) {
      if (path.empty()) refuse_root(entry);
      if (entry.action == Action::restructure) {
        seen_[module.get()] = plan_.entries.size();
        plan_.entries.push_back(std::move(entry));
        ++depth_;
        visit_children(path, module_at(root_, path));
        --depth_;
        return;
      }
      seen_[module.get()] = plan_.entries.size();
      tensors_.take_quantized(entry);
      plan_.entries.push_back(std::move(entry));
      return;
    }
    if (!block->own_tensors().empty()) {
      seen_[module.get()] = plan_.entries.size();
      tensors_.take_dense(entry, *block);
      plan_.entries.push_back(std::move(entry));
    }
    visit_children(path, module);
  }

  /// A module of LibTorch's own in somebody's model stays as it is, and is listed.
  void keep_foreign(const std::string& path, const torch::nn::Module& module) {
    PlanEntry entry;
    for (const auto& parameter : module.parameters(/*recurse=*/false))
      if (parameter.defined()) entry.bytes_before += parameter.nbytes();
    if (entry.bytes_before == 0) return;
    entry.spec.path = path;
    entry.spec.class_name = module.name();
    entry.bytes_after = entry.bytes_before;
    if (source_.known())
      throw Error(ErrorKind::usage,
                  "a " + module.name() + " is no graft::nn::Block, so a checkpoint cannot fill it")
          .at(path)
          .hint("derive the class from graft::nn::Block");
    entry.reason = "no graft::nn::Block, left alone";
    seen_[&module] = plan_.entries.size();
    plan_.entries.push_back(std::move(entry));
  }

  void visit_children(const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    for (const auto& child : module->named_children())
      visit(join_path(path, child.key()), child.value());
  }

  [[noreturn]] static void refuse_root(const PlanEntry& entry) {
    throw Error(ErrorKind::usage, "the root of the model, a " + entry.spec.class_name +
                                      ", cannot be replaced: nobody would hold the replacement")
        .hint("put it into a graft::nn::Slot of a block of your own");
  }

  void note_unmatched() {
    // For a quantized checkpoint the tensors decide, not the list.
    if (skip_ && !(request_.pre_quantized && source_.known()))
      for (const auto& name : skip_->unmatched())
        plan_.unmatched.push_back("the skip entry " + quote(name) + " matches no module" +
                                  suggestion(name));
    if (request_.method.quantizer)
      for (auto& text : request_.registry->unmatched_rules(paths_))
        plan_.unmatched.push_back(std::move(text));
  }

  template <class Call>
  void note_unportable(const Call& check) {
    try {
      check();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage) throw;
      plan_.unportable.push_back(error.what());
    }
  }

  /// Such a model can be run all the same.
  void note_unwritable() {
    try {
      written_settings(plan_, *request_.method.config);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage) throw;
      plan_.notes.push_back(std::string("cannot be saved: ") + error.what());
    }
  }

  std::string suggestion(const std::string& name) const {
    auto paths = paths_;
    std::erase(paths, "");
    const auto near = nearest_names(name, paths);
    return near.empty() ? "" : "; did you mean " + near + "?";
  }
  /// True when the module is to be replaced; else entry.reason says why not.
  bool decide(PlanEntry& entry, const nn::Block& block) {
    const Decision decision = request_.registry->decide(
        {request_.method.name, entry.spec.class_name, entry.spec.path,
         entry.spec.device.is_cuda() ? "cuda" : "cpu"});
    const auto dense_by = [&](PlanEntry::Dense why) {
      entry.dense = decision.claims.empty() ? PlanEntry::Dense::unclaimed : why;
    };
    dense_by(PlanEntry::Dense::chosen);
    // Other readers may have a module for each expert of a block that stays in one piece.
    if (dynamic_cast<const nn::Experts*>(&block)) entry.dense = PlanEntry::Dense::chosen;
    if (request_.predicate && !request_.predicate(entry.spec))
      return keep(entry, "left out by the caller");
    const bool by_tensors = request_.pre_quantized && source_.known();
    // Asked of every module, so that the list knows which of its entries matched.
    const auto skipped = skip_entry(entry.spec.path);
    if (const auto tied = tied_.find(entry.spec.path + ".weight"); tied != tied_.end()) {
      if (by_tensors && is_quantized(entry, decision)) refuse_quantized_alias(entry, tied->second);
      dense_by(PlanEntry::Dense::usual);
      return keep(entry, "tied to " + tied->second);
    }
    if (tied_owners_.contains(entry.spec.path + ".weight")) {
      dense_by(PlanEntry::Dense::usual);
      return keep(entry, "tied weight");
    }
    if (decision.kind == Decision::Kind::keep && (!by_tensors || !is_quantized(entry, decision))) {
      if (decision.rule->tier == Tier::installed && is_output_head(entry.spec.path))
        dense_by(PlanEntry::Dense::usual);
      kept_below_.emplace_back(join_path(entry.spec.path, ""), decision);
      return keep(entry, decision.reason);
    }
    if (!by_tensors)
      for (const auto& [above, kept] : kept_below_)
        if (entry.spec.path.starts_with(above) &&
            !(decision.rule && decision.rule->outranks(*kept.rule)))
          return keep(entry, kept.reason);
    if (decision.kind == Decision::Kind::none) return keep(entry, decision.reason);
    if (!by_tensors && skipped) return keep(entry, "skip list: " + quote(*skipped));
    if (decision.kind == Decision::Kind::replace)
      return replace(entry, block, decision, by_tensors);
    if (!decision.resolved_class.empty()) entry.spec.class_name = decision.resolved_class;
    return choose(entry, decision, by_tensors);
  }

  /// The entry of the skip list for a module, spelt as in the model or as checkpoints spell it.
  std::optional<std::string> skip_entry(const std::string& path) {
    if (!skip_) return std::nullopt;
    for (const auto& name : spellings_of(path, model_))
      if (auto found = skip_->match(name)) return std::string(*found);
    return std::nullopt;
  }

  static bool keep(PlanEntry& entry, std::string reason) {
    entry.reason = std::move(reason);
    return false;
  }

  /// What a rule names is restructured by a builder, or quantized by a plugin that makes the class.
  bool replace(PlanEntry& entry, const nn::Block& block, const Decision& decision,
               bool by_tensors) {
    const std::string& name = decision.rule->replacement;
    if (const auto* how = request_.restructures ? request_.restructures(name) : nullptr)
      return restructure(entry, block, decision, *how);
    Decision builders = decision;
    std::erase_if(builders.claims, [&](const ClaimRow& claim) {
      const Quantizer* quantizer = request_.quantizers(claim.plugin_id, request_.method.name);
      return !quantizer || call_plugin(claim.plugin_id, entry.spec.path, [&] {
        return quantizer->replacement_class(
                   entry.spec, *config_for(claim.plugin_id, *quantizer, decision)) != name;
      });
    });
    if (builders.claims.empty())
      throw Error(ErrorKind::plugin, "nobody builds the replacement " + quote(name) + " for the " +
                                         entry.spec.class_name + " at " + quote(entry.spec.path))
          .at(decision.rule->origin.text())
          .hint("install the plugin that builds it, or register it with Host::add_replacement");
    return choose(entry, builders, by_tensors);
  }

  bool restructure(PlanEntry& entry, const nn::Block& block, const Decision& decision,
                   const Restructuring& how) {
    if (entry.spec.path.empty()) refuse_root(entry);
    if (depth_ >= kDeepest)
      throw Error(ErrorKind::plugin,
                  "replacements are nested deeper than " + std::to_string(kDeepest) + ": a " +
                      quote(decision.rule->replacement) + " contains a " + entry.spec.class_name)
          .at(entry.spec.path)
          .at(decision.rule->origin.text());
    const Value text = model_ ? model_->text_config() : Value(Value::Object{});
    entry.parts = parts_of(block, how, entry.spec, text);
    if (request_.pre_quantized && source_.known())
      for (const auto& part : entry.parts)
        if (source_.find(join_path(entry.spec.path, part.from))) {
          entry.parts.clear();
          return keep(entry, "in one piece and dense in the checkpoint");
        }
    if (how.stored_in_one_piece)
      for (const auto& [name, tensor] : block.own_tensors())
        entry.in_one_piece[name] = tensor.sizes().vec();
    restructured_.emplace_back(
        entry.spec.path,
        replace_at(root_, entry.spec.path, restructured(block, how, entry.spec, text)));
    tensors_.derive(entry);
    entry.action = Action::restructure;
    entry.replacement = decision.rule->replacement;
    entry.reason = decision.rule->origin.text();
    return true;
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
      const auto base = config_for(claim.plugin_id, *quantizer, decision);
      const auto config = call([&] { return base->for_module(names_of(entry)); });
      if (by_tensors) {
        const auto present = call(
            [&] { return tensors_.presence(entry.spec, *quantizer, config ? *config : *base); });
        const bool skipped = skip_entry(entry.spec.path).has_value();
        if (present == TensorPlanner::Presence::unmarked && (skipped || !config))
          return keep(entry, "the settings leave it dense");
        if (present == TensorPlanner::Presence::dense ||
            (present == TensorPlanner::Presence::neither && !config)) {
          if (config && !skipped) dense_after_all_.push_back(entry.spec.path);
          return keep(entry, "dense in the checkpoint");
        }
        if (!config) quantized_after_all_.push_back(entry.spec.path);
      } else if (!config) {
        return keep(entry, "the settings leave it dense");
      }
      const auto& settings = config ? config : base;
      if (entry.spec.device.is_cpu() && request_.devices.offloads() &&
          !call([&] { return quantizer->quantizes_offloaded(*settings); }) && !by_tensors)
        return keep(entry, "it stays on the CPU, where the settings leave it dense");
      const Support support = call([&] { return quantizer->supports(entry.spec, *settings); });
      if (!support.yes) {
        reasons += (reasons.empty() ? "" : "; ") + claim.plugin_id + ": " + support.reason;
        continue;
      }
      if (!request_.pre_quantized)
        note_unportable([&] {
          call([&] { quantizer->require_portable(entry.spec, *settings); });
        });
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
                            const Decision& decision) {
    const Value& options = decision.options;
    if (options.is_object() && !options.as_object().empty()) {
      Value merged = request_.method.settings;
      for (const auto& [key, value] : options.as_object()) merged.set(key, value);
      QuantConfigPtr config;
      try {
        config = require_config(parsed(plugin_id, quantizer, merged), plugin_id);
      } catch (Error& error) {
        if (decision.rule) error.at(decision.rule->origin.text());
        throw;
      }
      for (const auto& field : config->unknown_fields)
        if (options.find(field)) unknown_options_.insert(field);
      return config;
    }
    auto& config = configs_[plugin_id];
    if (!config)
      config = require_config(parsed(plugin_id, quantizer, request_.method.settings), plugin_id);
    return config;
  }

  static QuantConfigPtr parsed(const std::string& plugin_id, const Quantizer& quantizer,
                               const Value& settings) {
    return call_plugin(plugin_id, "quantization_config", [&] { return quantizer.parse(settings); });
  }

  /// Whether the checkpoint has tensors of a quantized module there, for one of the claims.
  bool is_quantized(const PlanEntry& entry, const Decision& decision) {
    for (const auto& claim : decision.claims)
      if (const Quantizer* quantizer = request_.quantizers(claim.plugin_id, request_.method.name)) {
        const auto base = config_for(claim.plugin_id, *quantizer, decision);
        const auto config = base->for_module(names_of(entry));
        if (tensors_.presence(entry.spec, *quantizer, config ? *config : *base) ==
            TensorPlanner::Presence::quantized)
          return true;
      }
    return false;
  }

  [[noreturn]] static void refuse_quantized_alias(const PlanEntry& entry,
                                                  const std::string& owner) {
    throw Error(ErrorKind::model,
                "the checkpoint has quantized tensors of a module whose weight "
                "the config ties to " +
                    quote(owner))
        .at(entry.spec.path)
        .hint("set tie_word_embeddings to false in config.json");
  }

  std::vector<std::string> names_of(const PlanEntry& entry) const {
    return spellings_of(entry.spec.path, model_);
  }

  static std::string some(const std::vector<std::string>& paths) {
    return std::to_string(paths.size()) + " module(s), first " + quote(paths.front());
  }

  static constexpr std::size_t kDeepest = 16;
  static constexpr std::size_t kNoEntry = static_cast<std::size_t>(-1);

  std::shared_ptr<nn::Block> root_;
  const Model* model_;
  const PlanRequest& request_;
  Source source_;
  Plan plan_;
  std::map<std::string, std::string> tied_;  // alias -> owner
  TensorPlanner tensors_;
  std::set<std::string> tied_owners_;
  std::vector<std::string> dense_after_all_, quantized_after_all_;
  std::optional<SkipNames> skip_;
  std::map<std::string, QuantConfigPtr> configs_;  // by plugin
  std::map<const torch::nn::Module*, std::size_t> seen_;
  std::vector<std::string> paths_;
  std::set<std::string> unknown_options_;  // of rules
  std::vector<std::pair<std::string, Decision>> kept_below_;  // path with a dot, by which rule
  std::size_t depth_ = 0;  // of restructured modules in restructured modules
  /// What was taken out of the model: put back when planning fails, and kept alive, or a later
  /// module could have the address of one that was seen.
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> restructured_;
};

}  // namespace

Plan make_plan(const std::shared_ptr<nn::Block>& root, const PlanRequest& request) {
  return Planner(root, request).run();
}

}  // namespace graft
