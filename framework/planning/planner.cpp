#include "planning/planner.h"

#include <algorithm>
#include <map>
#include <set>

#include "applying/restructure.h"
#include "graft/error.h"
#include "graft/module_graph.h"
#include "host_state.h"
#include "planning/source.h"
#include "plugins/call.h"
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
      : root_(root),
        model_(dynamic_cast<const Model*>(root.get())),
        request_(request),
        source_(request.checkpoint, model_) {
    plan_.method = request.method.name;
    plan_.plugin = request.method.plugin_id;
    plan_.settings = request.method.config ? request.method.config->summary() : "";
    plan_.pre_quantized = request.pre_quantized;
    plan_.dtype = request.dtype;
    if (model_)
      for (const auto& tied : model_->tied_tensors()) tied_.emplace(tied.alias, tied.owner);
    for (const auto& [alias, owner] : tied_) tied_owners_.insert(owner);
    if (request.method.config && request.registry)
      skip_.emplace(request.registry->skip_names(request.method.config->skip));
    configs_.emplace(request.method.plugin_id, request.method.config);
    if (request.before)
      for (const auto& entry : request.before->entries) derive(entry);
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
    if (request_.method.config)
      for (const auto& field : request_.method.config->unknown_fields)
        plan_.doubts.push_back("nobody uses the field " + quote(field) +
                               " of the quantization_config");
    if (request_.method.quantizer && plan_.count(Action::quantize) == 0)
      plan_.notes.push_back("no module is quantized");
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
        restructured_.emplace_back(path, replace_at(root_, path, module_at(entry.spec.path)));
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
    entry.spec.device = request_.device;
    // What the weights of a quantized checkpoint stand for does not depend on what it is run in.
    if (request_.pre_quantized && source_.known())
      entry.spec.dtype = model_dtype(*request_.checkpoint);
    if (request_.method.quantizer && decide(entry, *block)) {
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
    // For a quantized checkpoint the tensors decide, not the list.
    if (skip_ && !(request_.pre_quantized && source_.known()))
      for (const auto& name : skip_->unmatched())
        plan_.unmatched.push_back("the skip entry " + quote(name) + " matches no module" +
                                  suggestion(name));
    if (request_.method.quantizer)
      for (auto& text : request_.registry->unmatched_rules(paths_))
        plan_.unmatched.push_back(std::move(text));
  }

  std::string suggestion(const std::string& name) const {
    const auto near = nearest_names(name, paths_);
    return near.empty() ? "" : "; did you mean " + near + "?";
  }
  /// True when the module is to be replaced; else entry.reason says why not.
  bool decide(PlanEntry& entry, const nn::Block& block) {
    if (request_.predicate && !request_.predicate(entry.spec))
      return keep(entry, "left out by the caller");
    const bool by_tensors = request_.pre_quantized && source_.known();
    // Asked of every module, so that the list knows which of its entries matched.
    const auto skipped = skip_ ? skip_->match(entry.spec.path) : std::nullopt;
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
    if (!by_tensors && skipped) return keep(entry, "skip list: " + quote(*skipped));
    if (decision.kind == Decision::Kind::replace) return replace(entry, block, decision, by_tensors);
    if (!decision.resolved_class.empty()) entry.spec.class_name = decision.resolved_class;
    return choose(entry, decision, by_tensors);
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

  bool restructure(PlanEntry& entry, const nn::Block& block, const Decision& decision,
                   const Restructuring& how) {
    if (entry.spec.path.empty()) refuse_root(entry);
    if (depth_ >= kDeepest)
      throw Error(ErrorKind::plugin, "replacements are nested deeper than " +
                                         std::to_string(kDeepest) + ": a " +
                                         quote(decision.rule->replacement) + " contains a " +
                                         entry.spec.class_name)
          .at(entry.spec.path)
          .at(decision.rule->origin.text());
    const Value text = model_ ? model_->text_config() : Value(Value::Object{});
    entry.parts = parts_of(block, how, entry.spec, text);
    if (request_.pre_quantized && source_.known())
      for (const auto& part : entry.parts)
        if (source_.find(join(entry.spec.path, part.from))) {
          entry.parts.clear();
          return keep(entry, "in one piece and dense in the checkpoint");
        }
    restructured_.emplace_back(
        entry.spec.path,
        replace_at(root_, entry.spec.path, restructured(block, how, entry.spec, text)));
    derive(entry);
    entry.action = Action::restructure;
    entry.replacement = decision.rule->replacement;
    entry.reason = decision.rule->origin.text();
    return true;
  }

  /// Remembers where the tensors of a restructured module may be in the checkpoint.
  void derive(const PlanEntry& entry) {
    if (!source_.known()) return;
    for (const auto& part : entry.parts)
      derived_.emplace(join(entry.spec.path, part.to),
                       Derived{join(entry.spec.path, part.from), part.to, part.region});
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
      const auto base =
          call([&] { return config_for(claim.plugin_id, *quantizer, decision.options); });
      const auto config = call([&] { return base->for_module(entry.spec.path); });
      if (by_tensors) {
        const auto present =
            call([&] { return presence(entry.spec, *quantizer, config ? *config : *base); });
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
      if (spec.input_major)
        take(entry, "weight", {spec.in_features, spec.out_features}, true, kTransposed);
      else
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
      return static_cast<std::uint64_t>(t.numel()) * c10::elementSize(t.scalar_type());
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
      if (!source_.known()) continue;
      if (source_.find(full) || !take_parts(entry, name, tensor, block))
        take(entry, name, tensor.sizes().vec(), tensor.is_floating_point());
    }
    if (entry.reason.empty()) entry.reason = "no method";
  }

  /// Takes the checkpoint's tensor for the one called `name`. `region`: the tensor is that part.
  void take(PlanEntry& entry, const std::string& name, std::vector<std::int64_t> shape,
            bool float_only, std::optional<nn::Region> region = std::nullopt) {
    const std::string full = join(entry.spec.path, name);
    const auto* info = source_.find(full);
    const Derived* derived = nullptr;
    if (!info)
      if (const auto at = derived_.find(full); at != derived_.end()) {
        derived = &at->second;
        info = source_.find(derived->from);
        region = derived->region;
      }
    if (!info) {
      plan_.missing.push_back(quote(full));
      return;
    }
    const auto found = derived ? region->shape_in(info->shape) : info->shape;
    if (found != shape)
      plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                                 ", expected " + shape_text(shape) +
                                 (derived ? " inside it, for " + quote(full) : ""));
    else if (float_only && !is_float(info->dtype))
      plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                                 ", expected a float type");
    std::uint64_t bytes = info->bytes;
    if (derived) {
      bytes = bytes_of(*info, shape);
      // "<experts>.gate_up_proj" -> "<experts>.3.gate_proj"
      const auto last_dot = info->name.rfind('.');
      entry.source_path = info->name.substr(0, last_dot + 1) + parent_of(derived->to);
    } else {
      spell(entry, name, *info);
    }
    source_.take(info);
    entry.tensors.push_back({name, info->name, bytes, region, std::nullopt});
  }

  /// A tensor in one piece, from a checkpoint that has its parts; false when it has none of them.
  bool take_parts(PlanEntry& entry, const std::string& name, const at::Tensor& tensor,
                  const nn::Block& block) {
    if (parts_of_ != &block) {
      parts_ = block.parts();
      parts_of_ = &block;
    }
    bool any = false;
    for (const auto& part : parts_)
      any = any || (part.from == name && source_.find(join(entry.spec.path, part.to)));
    if (!any) return false;
    for (const auto& part : parts_) {
      if (part.from != name) continue;
      const std::string full = join(entry.spec.path, part.to);
      const auto* info = source_.find(full);
      if (!info) {
        plan_.missing.push_back(quote(full));
        continue;
      }
      if (const auto shape = part.region.shape_in(tensor.sizes()); shape != info->shape)
        plan_.mismatched.push_back(quote(info->name) + " is " + shape_text(info->shape) +
                                   ", expected " + shape_text(shape));
      else if (!is_float(info->dtype))
        plan_.mismatched.push_back(quote(info->name) + " is " + std::string(name_of(info->dtype)) +
                                   ", expected a float type");
      source_.take(info);
      entry.tensors.push_back({name, info->name, info->bytes, std::nullopt, part.region});
    }
    return true;
  }

  void add(PlanEntry& entry, const std::string& name, const TensorInfo* info) {
    source_.take(info);
    spell(entry, name, *info);
    entry.tensors.push_back({name, info->name, info->bytes, std::nullopt, std::nullopt});
  }

  /// Remembers the module's path as the checkpoint spells it.
  static void spell(PlanEntry& entry, const std::string& name, const TensorInfo& info) {
    if (info.name.size() > name.size() && info.name.ends_with("." + name))
      entry.source_path = info.name.substr(0, info.name.size() - name.size() - 1);
  }

  static std::uint64_t bytes_of(const TensorInfo& info, const std::vector<std::int64_t>& shape) {
    std::int64_t all = 1, part = 1;
    for (const auto extent : info.shape) all *= extent;
    for (const auto extent : shape) part *= extent;
    return all ? info.bytes / static_cast<std::uint64_t>(all) * static_cast<std::uint64_t>(part)
               : 0;
  }

  std::string device_word() const { return request_.device.is_cuda() ? "cuda" : "cpu"; }
  static std::string join(const std::string& path, const std::string& name) {
    return path.empty() ? name : path + "." + name;
  }
  static std::string parent_of(const std::string& path) {
    const auto dot = path.rfind('.');
    return dot == std::string::npos ? "" : path.substr(0, dot);
  }
  static std::string last(const std::string& path) {
    const auto dot = path.rfind('.');
    return dot == std::string::npos ? path : path.substr(dot + 1);
  }

  static constexpr std::size_t kDeepest = 16;
  static constexpr std::size_t kNoEntry = static_cast<std::size_t>(-1);
  static constexpr nn::Region kTransposed{.transpose = true};

  /// A tensor of a restructured module that may be a part of one of the module it replaced.
  struct Derived {
    std::string from;  ///< the model's name of the tensor in one piece
    std::string to;    ///< relative to the replaced module
    nn::Region region;
  };

  std::shared_ptr<nn::Block> root_;
  const Model* model_;
  const PlanRequest& request_;
  Source source_;
  Plan plan_;
  std::map<std::string, std::string> tied_;  // alias -> owner
  std::set<std::string> tied_owners_;
  std::vector<std::string> dense_after_all_, quantized_after_all_;
  std::optional<SkipNames> skip_;
  std::map<std::string, QuantConfigPtr> configs_;  // by plugin
  std::map<const torch::nn::Module*, std::size_t> seen_;
  std::vector<std::string> paths_;
  std::size_t depth_ = 0;  // of restructured modules in restructured modules
  /// What was taken out of the model: put back when planning fails, and kept alive, or a later
  /// module could have the address of one that was seen.
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> restructured_;
  std::map<std::string, Derived> derived_;  // by the model's name of the part
  const nn::Block* parts_of_ = nullptr;     // whose parts_ are
  std::vector<nn::TensorPart> parts_;
};

}  // namespace

Plan make_plan(const std::shared_ptr<nn::Block>& root, const PlanRequest& request) {
  return Planner(root, request).run();
}

}  // namespace graft
