#include "planning/planner.h"

#include <algorithm>
#include <map>
#include <set>

#include "graft/error.h"
#include "graft/module_graph.h"
#include "host_state.h"
#include "registry/name_match.h"

namespace graft {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

/// Names of the checkpoint as the model sees them: a prefix that the file has and the model lacks
/// is taken off. Remembers what has been taken.
class Source {
 public:
  Source(const Checkpoint* checkpoint, const std::vector<std::string>& prefixes) {
    if (!checkpoint) return;
    known_ = true;
    for (const auto& info : checkpoint->tensors()) {
      std::string_view name = info.name;
      for (const auto& prefix : prefixes)
        if (name.starts_with(prefix)) {
          name.remove_prefix(prefix.size());
          break;
        }
      by_name_.emplace(std::string(name), &info);
    }
  }

  bool known() const { return known_; }
  const TensorInfo* find(const std::string& name) const {
    const auto at = by_name_.find(name);
    return at == by_name_.end() ? nullptr : at->second;
  }
  /// Tensors directly or deeper under the module at `path`.
  std::vector<std::pair<std::string, const TensorInfo*>> under(const std::string& path) const {
    const std::string prefix = path.empty() ? "" : path + ".";
    std::vector<std::pair<std::string, const TensorInfo*>> out;
    for (auto at = by_name_.lower_bound(prefix);
         at != by_name_.end() && at->first.starts_with(prefix); ++at)
      out.emplace_back(at->first.substr(prefix.size()), at->second);
    return out;
  }
  void take(const TensorInfo* info) { taken_.insert(info); }
  std::vector<std::string> rest() const {
    std::vector<std::string> out;
    for (const auto& [name, info] : by_name_)
      if (!taken_.contains(info)) out.push_back(info->name);
    return out;
  }

 private:
  bool known_ = false;
  std::map<std::string, const TensorInfo*> by_name_;
  std::set<const TensorInfo*> taken_;
};

class Planner {
 public:
  Planner(const std::shared_ptr<nn::Block>& root, const PlanRequest& request)
      : root_(root), request_(request), source_(request.checkpoint, prefixes(*root)) {
    plan_.method = request.method.name;
    plan_.plugin = request.method.plugin_id;
    plan_.settings = request.method.config ? request.method.config->summary() : "";
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
    visit("", root_);
    for (const auto& [alias, owner] : tied_) plan_.tied.push_back(alias);
    for (const auto& name : source_.rest()) note_unexpected(name);
    if (skip_) note_unmatched();
    if (!dense_after_all_.empty())
      plan_.notes.push_back("the settings say quantized, but the checkpoint is dense: " +
                            some(dense_after_all_));
    if (!quantized_after_all_.empty())
      plan_.notes.push_back("the settings say dense, but the checkpoint is quantized: " +
                            some(quantized_after_all_));
    if (request_.method.config)
      for (const auto& field : request_.method.config->unknown_fields)
        plan_.doubts.push_back("nobody uses the field " + quote(field) +
                               " of the quantization_config");
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
      if (seen->second != kNoEntry) plan_.entries[seen->second].also.push_back(path);
      return;
    }
    seen_.emplace(module.get(), kNoEntry);
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
    // What the weights of a quantized checkpoint stand for does not depend on what it is run in.
    if (request_.pre_quantized && source_.known())
      entry.spec.dtype = model_dtype(*request_.checkpoint);
    if (request_.method.quantizer && decide(entry)) {
      if (path.empty())
        throw Error(ErrorKind::usage, "the root of the model, a " + entry.spec.class_name +
                                          ", cannot be replaced: nobody would hold the replacement")
            .hint("put it into a graft::nn::Slot of a block of your own");
      if (entry.action == Action::restructure) {
        plan_.entries.push_back(entry);
        visit_children(
            path, *get_module_from_name(root_, path).parent->named_children().find(last(path)));
        return;
      }
      seen_[module.get()] = plan_.entries.size();
      take_quantized(entry, *block);
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

  void visit_children(const std::string& path, const std::shared_ptr<torch::nn::Module>& module) {
    for (const auto& child : module->named_children())
      visit(join(path, child.key()), child.value());
  }

  /// True when the module is to be replaced; else entry.reason says why not.
  bool decide(PlanEntry& entry) {
    if (request_.predicate && !request_.predicate(entry.spec))
      return keep(entry, "left out by the caller");
    const bool by_tensors = request_.pre_quantized && source_.known();
    if (const auto tied = tied_.find(entry.spec.path + ".weight"); tied != tied_.end()) {
      if (by_tensors) refuse_quantized_alias(entry.spec, tied->second);
      return keep(entry, "tied to " + tied->second);
    }
    if (tied_owners_.contains(entry.spec.path + ".weight")) return keep(entry, "tied weight");
    const Decision decision = request_.registry->decide(
        {request_.method.name, entry.spec.class_name, entry.spec.path, device_word()});
    if (decision.kind == Decision::Kind::keep && (!by_tensors || !is_quantized(entry, decision)))
      return keep(entry, decision.reason);
    if (decision.kind == Decision::Kind::none) return keep(entry, decision.reason);
    if (decision.kind == Decision::Kind::replace) return restructure(entry, decision);
    if (!by_tensors && skip_)
      if (const auto hit = skip_->match(entry.spec.path))
        return keep(entry, "skip list: " + quote(*hit));
    if (!decision.resolved_class.empty()) entry.spec.class_name = decision.resolved_class;
    return choose(entry, decision, by_tensors);
  }

  void note_unmatched() {
    const auto unmatched = skip_->unmatched();
    if (unmatched.empty() || (request_.pre_quantized && source_.known())) return;
    std::vector<std::string> paths;
    for (const auto& entry : plan_.entries) paths.push_back(entry.spec.path);
    for (const auto& name : unmatched) {
      const auto near = nearest_names(name, paths);
      plan_.notes.push_back("the skip entry " + quote(name) + " matched no module" +
                            (near.empty() ? "" : "; did you mean " + near + "?"));
    }
  }

  static bool keep(PlanEntry& entry, std::string reason) {
    entry.reason = std::move(reason);
    return false;
  }

  bool restructure(PlanEntry& entry, const Decision& decision) {
    const auto build =
        request_.restructures ? request_.restructures(decision.rule->replacement) : Restructure{};
    if (!build)
      throw Error(ErrorKind::plugin, "nobody builds the replacement " +
                                         quote(decision.rule->replacement) + " for the " +
                                         entry.spec.class_name + " at " + quote(entry.spec.path))
          .at(decision.rule->origin.text())
          .hint("install the plugin that builds it, or register it with Host::add_replacement");
    const auto* model = dynamic_cast<const Model*>(root_.get());
    replace_at(root_, entry.spec.path,
               build(entry.spec, model ? model->text_config() : Value(Value::Object{})));
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
      const auto base = config_for(claim.plugin_id, *quantizer, decision.options);
      const auto config = base->for_module(entry.spec.path);
      if (by_tensors) {
        const auto present = presence(entry.spec, *quantizer, config ? *config : *base);
        const bool skipped = skip_ && skip_->match(entry.spec.path);
        if (present == Presence::unmarked && (skipped || !config))
          return keep(entry, "the settings leave it dense");
        if (present == Presence::dense || (present == Presence::neither && !config)) {
          if (config && !skipped) dense_after_all_.push_back(entry.spec.path);
          return keep(entry, "dense in the checkpoint");
        }
        if (!config) quantized_after_all_.push_back(entry.spec.path);
      } else if (!config) {
        return keep(entry, "the settings leave it dense");
      }
      const auto& settings = config ? config : base;
      const Support support = quantizer->supports(entry.spec, *settings);
      if (!support.yes) {
        reasons += (reasons.empty() ? "" : "; ") + claim.plugin_id + ": " + support.reason;
        continue;
      }
      entry.action = Action::quantize;
      entry.plugin = claim.plugin_id;
      entry.kernel = support.kernel;
      entry.settings = settings->summary();
      entry.quantizer = quantizer;
      entry.config = settings;
      entry.replacement = quantizer->replacement_class(entry.spec, *settings);
      entry.reason = decision.rule ? decision.rule->origin.text() : "claimed by " + claim.plugin_id;
      return true;
    }
    if (by_tensors)
      throw Error(ErrorKind::model,
                  "the checkpoint's quantized module cannot be loaded: " + reasons)
          .at(entry.spec.path);
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
  /// reported; likewise where a quantized module has the tensors of a dense one (unmarked).
  enum class Presence { quantized, dense, neither, unmarked };
  Presence presence(const ModuleSpec& spec, const Quantizer& quantizer,
                    const QuantConfig& config) const {
    bool marked = false;
    for (const auto& tensor : quantizer.tensors(spec, config)) {
      if (tensor.name == "weight" || tensor.name == "bias") continue;
      marked = true;
      if (source_.find(join(spec.path, tensor.name))) return Presence::quantized;
    }
    if (!marked) return Presence::unmarked;
    return source_.find(join(spec.path, "weight")) ? Presence::dense : Presence::neither;
  }

  /// Whether the checkpoint has tensors of a quantized module there, for one of the claims.
  bool is_quantized(const PlanEntry& entry, const Decision& decision) {
    for (const auto& claim : decision.claims)
      if (const Quantizer* quantizer = request_.quantizers(claim.plugin_id, request_.method.name)) {
        const auto base = config_for(claim.plugin_id, *quantizer, decision.options);
        const auto config = base->for_module(entry.spec.path);
        if (presence(entry.spec, *quantizer, config ? *config : *base) == Presence::quantized)
          return true;
      }
    return false;
  }

  void refuse_quantized_alias(const ModuleSpec& spec, const std::string& owner) {
    PlanEntry entry;
    entry.spec = spec;
    const Decision decision =
        request_.registry->decide({request_.method.name, spec.class_name, spec.path, device_word()});
    if (is_quantized(entry, decision))
      throw Error(ErrorKind::model, "the checkpoint has quantized tensors of a module whose weight "
                                    "the config ties to " +
                                        quote(owner))
          .at(spec.path)
          .hint("set tie_word_embeddings to false in config.json");
  }

  static std::string some(const std::vector<std::string>& paths) {
    return std::to_string(paths.size()) + " module(s), first " + quote(paths.front());
  }

  void take_quantized(PlanEntry& entry, const nn::Block& dense) {
    const auto& spec = entry.spec;
    const auto element = static_cast<std::uint64_t>(c10::elementSize(request_.dtype));
    const auto weights = static_cast<std::uint64_t>(spec.in_features) *
                         static_cast<std::uint64_t>(spec.out_features);
    entry.bytes_before =
        (weights + (spec.bias ? static_cast<std::uint64_t>(spec.out_features) : 0)) * element;
    const auto specs = entry.quantizer->tensors(spec, *entry.config);
    for (const auto& tensor : specs) entry.bytes_after += tensor.bytes;
    if (!source_.known()) return;
    if (!request_.pre_quantized) {
      for (const auto& [name, tensor] : dense.own_tensors())
        take(entry, name, tensor.sizes().vec(), true);
      return;
    }
    entry.bytes_after = 0;
    for (const auto& tensor : specs) {
      const auto* info = source_.find(join(spec.path, tensor.name));
      if (!info) {
        if (tensor.required) plan_.missing.push_back(quote(join(spec.path, tensor.name)));
        continue;
      }
      check_shape(tensor, *info);
      add(entry, tensor.name, info);
      entry.tensors.back().finite = tensor.finite && !request_.allow_nonfinite;
      entry.tensors.back().examined = tensor.examined;
      entry.bytes_after += info->bytes;
    }
  }

  void check_shape(const TensorSpec& tensor, const TensorInfo& info) {
    if (!tensor.dtypes.empty() && std::find(tensor.dtypes.begin(), tensor.dtypes.end(),
                                            scalar_type(info.dtype)) == tensor.dtypes.end()) {
      std::string allowed;
      for (const auto dtype : tensor.dtypes)
        allowed += (allowed.empty() ? "" : " or ") + std::string(name_of(dtype_of(dtype)));
      plan_.mismatched.push_back(quote(info.name) + " is " + std::string(name_of(info.dtype)) +
                                 ", expected " + allowed);
    } else if (tensor.shape && *tensor.shape != info.shape) {
      plan_.mismatched.push_back(quote(info.name) + " is " + shape_text(info.shape) +
                                 ", expected " + shape_text(*tensor.shape));
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
          plan_.notes.push_back(quote(full) +
                                " is in the checkpoint although the config ties it to " +
                                quote(tied_.at(full)) + ", which is used");
        }
        if (entry.reason.empty()) entry.reason = "tied to " + tied_.at(full);
        continue;
      }
      entry.bytes_before += element(tensor);
      entry.bytes_after += element(tensor);
      if (source_.known()) take(entry, name, tensor.sizes().vec(), false);
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

  void note_unexpected(const std::string& name) { plan_.unexpected.push_back(quote(name)); }

  std::string device_word() const { return request_.device.is_cuda() ? "cuda" : "cpu"; }
  static std::string join(const std::string& path, const std::string& name) {
    return path.empty() ? name : path + "." + name;
  }
  static std::string last(const std::string& path) {
    const auto dot = path.rfind('.');
    return dot == std::string::npos ? path : path.substr(dot + 1);
  }

  static constexpr std::size_t kNoEntry = static_cast<std::size_t>(-1);
  std::shared_ptr<nn::Block> root_;
  const PlanRequest& request_;
  Source source_;
  Plan plan_;
  std::map<std::string, std::string> tied_;  // alias -> owner
  std::set<std::string> tied_owners_;
  std::vector<std::string> dense_after_all_, quantized_after_all_;
  std::optional<SkipNames> skip_;
  std::map<std::string, QuantConfigPtr> configs_;  // by plugin
  std::map<const torch::nn::Module*, std::size_t> seen_;
};

}  // namespace

Method find_method(const Value& settings, const std::vector<ClaimRow>& claims,
                   const QuantizerLookup& lookup) {
  std::set<std::pair<std::string, std::string>> offers;  // method, plugin
  for (const auto& claim : claims) offers.emplace(claim.method, claim.plugin_id);
  Method best;
  int best_score = 0;
  std::string rival;
  std::vector<std::string> methods;
  for (const auto& [method, plugin] : offers) {
    if (methods.empty() || methods.back() != method) methods.push_back(method);
    const Quantizer* quantizer = lookup(plugin, method);
    const int score = quantizer ? quantizer->recognises(settings) : 0;
    if (score > best_score) {
      best_score = score;
      best = {method, plugin, quantizer, settings, nullptr};
      rival.clear();
    } else if (score > 0 && score == best_score && method != best.name) {
      rival = method;
    }
  }
  if (best_score == 0) {
    std::string installed;
    for (const auto& method : methods) installed += (installed.empty() ? "" : ", ") + method;
    const std::string named = settings.get_string("quant_method", "");
    Error error(ErrorKind::plugin,
                named.empty() ? "no plugin recognises the quantization settings"
                              : "no plugin claims the quantization method " + quote(named));
    error.expected(installed.empty() ? "a plugin, but none is loaded" : "one of " + installed);
    if (const auto near = nearest_names(named, methods); !near.empty())
      error.hint("did you mean " + near + "?");
    else
      error.hint(
          "install the plugin into the plugin directory (graft plugins lists where is searched)");
    throw error;
  }
  if (!rival.empty())
    throw Error(ErrorKind::plugin,
                "the quantization settings could be of " + best.name + " or of " + rival)
        .hint("add \"quant_method\" to the settings");
  best.config = best.quantizer->parse(settings);
  return best;
}

Plan make_plan(const std::shared_ptr<nn::Block>& root, const PlanRequest& request) {
  return Planner(root, request).run();
}

}  // namespace graft
