#include "graft/host.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "applying/convert.h"
#include "applying/device.h"
#include "calibrating/calibrate.h"
#include "calibrating/job_description.h"
#include "calibrating/job_file.h"
#include "calibrating/journal.h"
#include "calibrating/mixed_bits.h"
#include "calibrating/requirements.h"
#include "checkpoint/temporary_folder.h"
#include "graft/module_graph.h"
#include "graft/ranks.h"
#include "host_state.h"
#include "models/restructurings.h"
#include "models/unknown_model.h"
#include "planning/placing.h"
#include "planning/settings.h"
#include "planning/written_settings.h"
#include "plugins/call.h"
#include "rule_files.h"
#include "running/input_ids.h"

namespace graft {

namespace fs = std::filesystem;

const Value* quantization_config_of(const Value& config) {
  if (const Value* found = config.find("quantization_config")) return found;
  if (const Value* text = config.find("text_config")) return text->find("quantization_config");
  return nullptr;
}

static at::ScalarType stored_dtype(const Checkpoint& checkpoint) {
  const Value& config = checkpoint.config();
  for (const char* field : {"dtype", "torch_dtype"}) {
    if (!config.find(field)) continue;
    try {
      return float_dtype_from_word(config.get_string(field, ""), ErrorKind::model);
    } catch (Error& error) {
      throw error.at("config.json: field " + quote(field));
    }
  }
  for (const auto& info : checkpoint.tensors())
    if (is_float(info.dtype)) return scalar_type(info.dtype);
  return at::kFloat;
}

at::ScalarType model_dtype(const Checkpoint& checkpoint) {
  const auto stored = stored_dtype(checkpoint);
  return stored == at::kDouble ? at::kFloat : stored;
}

void Host::State::rebuild_registry() {
  Registry::Builder builder;
  builder.add_claims(claims);
  for (const auto* library : plugins.libraries())
    if (const auto& file = library->registry_file()) builder.add_file(*file, Tier::plugin);
  for (const auto& file : installed_rules()) builder.add_file(file, Tier::installed);
  for (const auto& file : user_rules()) builder.add_file(file, Tier::user);
  for (const auto& file : options.registry_files) builder.add_file(file, Tier::command_line);
  for (std::size_t i = 0; i < patches.size(); ++i)  // API:1, API:2, ...: later wins
    builder.add_text(std::string(i, '\n') + "{graft: 1, patches: [" + patches[i] + "\n]}\n", "API",
                     Tier::command_line);
  registry = builder.build();
  for (const auto& note : registry.notes()) {
    if (options.strict)
      throw Error(ErrorKind::plugin, note).hint("leave out --strict to go on without it");
    options.context.say(LogLevel::warning, "registry", note);
  }
}

const Quantizer* Host::State::quantizer(const std::string& plugin_id,
                                        const std::string& method) const {
  for (const auto* library : plugins.libraries())
    if (library->id() == plugin_id) return library->quantizer(method);
  return nullptr;
}

std::set<std::string> Host::State::settings_files() const {
  std::set<std::string> names;
  for (const auto& claim : claims)
    if (const auto* offered = quantizer(claim.plugin_id, claim.method))
      for (auto& name : call_plugin(claim.plugin_id, "names of settings files",
                                    [&] { return offered->settings_files(); }))
        names.insert(std::move(name));
  return names;
}

Method Host::State::find_method(const Value& settings) const {
  return graft::find_method(
      settings, claims,
      [this](const std::string& id, const std::string& method) { return quantizer(id, method); });
}

PlanRequest Host::State::request() const {
  PlanRequest request;
  request.registry = &registry;
  request.quantizers = [this](const std::string& id, const std::string& method) {
    return quantizer(id, method);
  };
  request.restructures = [this](const std::string& name) { return restructuring(name); };
  return request;
}

const Restructuring* Host::State::restructuring(const std::string& name) const {
  if (const auto found = replacements.find(name); found != replacements.end())
    return &found->second;
  const std::lock_guard lock(of_plugins_mutex);
  if (const auto found = of_plugins.find(name); found != of_plugins.end()) return &found->second;
  const PluginLibrary* owner = nullptr;
  const Restructuring* theirs = nullptr;
  for (const auto* library : plugins.libraries()) {
    const auto* offered =
        static_cast<const Restructuring*>(library->query(kRestructuringInterface, name.c_str()));
    if (!offered) continue;
    if (owner)
      throw Error(ErrorKind::plugin, "two plugins build the replacement " + quote(name) + ": " +
                                         owner->file().string() + " and " +
                                         library->file().string())
          .hint("remove one of them");
    owner = library;
    theirs = offered;
  }
  if (!owner) return model_restructuring(name);
  const std::string id(owner->id()), doing = "building " + name;
  Restructuring guarded;
  guarded.stored_in_one_piece = theirs->stored_in_one_piece;
  guarded.build = [=](const ModuleSpec& spec, const Value& text) {
    return call_plugin(id, doing, [&] { return theirs->build(spec, text); });
  };
  if (theirs->map)
    guarded.map = [=](const ModuleSpec& spec, const Value& text) {
      return call_plugin(id, doing, [&] { return theirs->map(spec, text); });
    };
  return &of_plugins.emplace(name, std::move(guarded)).first->second;
}

Host::Host(HostOptions options) : state_(std::make_unique<State>()) {
  state_->options = std::move(options);
  const auto& given = state_->options;
  PluginSearch search;
  search.files = given.plugin_files;
  search.directories = given.plugin_directories;
  search.use_default_path = given.default_plugin_path;
  search.allow_insecure = given.allow_insecure_plugins;
  state_->plugins = Plugins::find(search, given.context);
  for (const auto* library : state_->plugins.libraries())
    for (const auto& claim : library->claims())
      state_->claims.push_back({std::string(library->id()), library->file().string(), claim.method,
                                claim.module_class, claim.device, claim.priority});
  state_->rebuild_registry();
}

Host::~Host() = default;
Host::Host(Host&&) noexcept = default;
Host& Host::operator=(Host&&) noexcept = default;

void Host::add_replacement(std::string name, Replacement build) {
  add_replacement(std::move(name), Restructuring{std::move(build), nullptr});
}

void Host::add_replacement(std::string name, Restructuring how) {
  state_->replacements[std::move(name)] = std::move(how);
}

std::vector<std::string> Host::replacements() const {
  std::vector<std::string> names = model_restructuring_names();
  for (const auto& [name, build] : state_->replacements) names.push_back(name);
  return names;
}

bool Host::builds(const std::string& replacement) const {
  return state_->restructuring(replacement) != nullptr;
}

void Host::add_patch(const std::string& yaml) {
  state_->patches.push_back(yaml);
  try {
    state_->rebuild_registry();
  } catch (...) {
    state_->patches.pop_back();
    throw;
  }
}

const Plugins& Host::plugins() const { return state_->plugins; }
const Registry& Host::registry() const { return state_->registry; }
const HostOptions& Host::options() const { return state_->options; }

struct Host::State::Prepared {
  std::shared_ptr<Model> model;  ///< skeleton on meta
  std::optional<ModelQuantizer> quantizer;
  Settings settings;
  Plan plan;

  /// What is said of the settings comes before what is said of the modules.
  void set_plan(Plan made) {
    plan = std::move(made);
    plan.notes.insert(plan.notes.begin(), settings.notes.begin(), settings.notes.end());
    plan.doubts.insert(plan.doubts.begin(), settings.doubts.begin(), settings.doubts.end());
  }
  void settle(const Checkpoint& checkpoint, const Context& context) {
    set_plan(quantizer->settle(checkpoint, context));
  }
};

/// Of an architecture that graft does not have, what the names of dense tensors tell.
static std::shared_ptr<Model> skeleton(const Checkpoint& checkpoint, const LoadOptions& options,
                                       const Settings& settings, at::ScalarType dtype) {
  if (!is_known_architecture(checkpoint.config()) && settings.value.is_object()) {
    if (options.structure) return build_unknown_model(*options.structure);
    if (!settings.from_checkpoint && !checkpoint.tensors().empty())
      return build_unknown_model(checkpoint);
  }
  return build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(dtype));
}

Host::State::Prepared Host::State::prepare(const Host& host, const Checkpoint& checkpoint,
                                           const LoadOptions& given) const {
  std::vector<Offer> offers;
  for (const auto& claim : claims)
    if (const auto* offered = quantizer(claim.plugin_id, claim.method))
      offers.push_back({claim.method, claim.plugin_id, offered});
  Prepared out;
  out.settings = find_settings(checkpoint, given, offers,
                               [&](const Value& value) { return find_method(value); });
  const Settings& settings = out.settings;
  const auto dtype = given.dtype.value_or(model_dtype(checkpoint));
  out.model = skeleton(checkpoint, given, settings, dtype);
  const bool has_weights = !checkpoint.tensors().empty();
  if (settings.value.is_object()) {
    try {
      out.quantizer = ModelQuantizer::from_config(host, settings.value, settings.from_checkpoint);
    } catch (Error& error) {
      if (settings.from_checkpoint)
        error.at((checkpoint.folder() / "config.json").string());
      else if (error.kind() == ErrorKind::model)  // no file has it: the call is wrong
        throw Error(ErrorKind::usage, error.what());
      throw;
    }
    out.quantizer->set_device(given.device);
    out.set_plan(out.quantizer->make_plan(out.model, has_weights ? &checkpoint : nullptr, dtype));
  } else {
    PlanRequest dense = request();
    dense.checkpoint = has_weights ? &checkpoint : nullptr;
    dense.dtype = dtype;
    out.set_plan(plan_on(
        given.device, out.model, [](const c10::Device&) { return true; },
        [&](const DeviceMap& devices) {
          dense.devices = devices;
          return make_plan(out.model, dense);
        }));
  }
  if (!given.dtype && stored_dtype(checkpoint) == at::kDouble)
    out.plan.notes.emplace_back(
        "the model's dtype is float64, in which no layer computes: it is float32 here");
  if (!is_known_architecture(checkpoint.config()))
    out.plan.notes.push_back(
        "graft does not have the architecture " +
        quote(checkpoint.config().get_string("model_type", "")) +
        ": planned from names and shapes of tensors alone; nothing was run, nothing can be");
  return out;
}

Plan Host::plan(const Checkpoint& checkpoint, const LoadOptions& options) const {
  return state_->prepare(*this, checkpoint, options).plan;
}

LoadedModel Host::load(const fs::path& folder, const LoadOptions& options) const {
  return load(Checkpoint::open(folder), options);
}

Plan Host::inspect(const Checkpoint& checkpoint, const LoadOptions& options) const {
  State::Prepared ready = state_->prepare(*this, checkpoint, options);
  const bool whole = ready.plan.missing.empty() && ready.plan.mismatched.empty();
  if (!ready.quantizer || !ready.quantizer->pre_quantized() || !whole ||
      checkpoint.tensors().empty())
    return ready.plan;
  try {
    ready.settle(checkpoint, options.context);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::model) throw;
    ready.plan.refusal = error.what();
  }
  return ready.plan;
}

/// As many samples of [B, T] at a time as keep what a layer makes of them in the cache; fewer for
/// polishing, which learns from few at a time.
static std::vector<at::Tensor> in_batches(const at::Tensor& ids, bool polishes) {
  const std::int64_t tokens = polishes ? 512 : 2048;
  return ids.split(std::max<std::int64_t>(1, tokens / ids.size(1)));
}

/// Throws Error(usage) unless all ranks are to do this job.
static void require_same_job(Ranks& ranks, const Value& job) {
  const auto sums = ranks.gather(checksum(to_json(job)));
  for (std::size_t rank = 0; rank < sums.size(); ++rank)
    if (sums[rank] != sums[0])
      throw Error(ErrorKind::usage, "the processes do not do the same job")
          .at("rank " + std::to_string(rank))
          .expected("the model, settings, plugins and text of rank 0")
          .found("others")
          .hint("start all of them with the same command on the same files");
}

/// What `work` gives; when it throws, the other ranks are told why.
template <class Work>
static auto told_to_ranks(Ranks* ranks, const Work& work) {
  try {
    return work();
  } catch (const RankLost&) {
    throw;
  } catch (const std::exception& error) {
    if (ranks) ranks->fail(error.what());
    throw;
  }
}

LoadedModel Host::load(const Checkpoint& checkpoint, const LoadOptions& options) const {
  return load_observed(checkpoint, options, {});
}

/// The bits that the method's option of that name offers.
static std::vector<int> offered_bits(const Quantizer& quantizer, const std::string& plugin) {
  std::vector<int> out;
  for (const auto& option : call_plugin(plugin, "options", [&] { return quantizer.options(); }))
    if (option.name == "bits")
      for (const auto& choice : option.choices)
        if (const int bits = std::atoi(choice.c_str()); bits > 0) out.push_back(bits);
  return out;
}

Value Host::choose_bits(const Checkpoint& checkpoint, const LoadOptions& given,
                        double bits_per_weight) const {
  LoadOptions options = given;
  options.state = {};
  options.recipe = Recipe::fast;
  options.polish_steps = 0;
  options.search_by_block = false;
  const State::Prepared ready = state_->prepare(*this, checkpoint, options);
  const auto entry =
      std::find_if(ready.plan.entries.begin(), ready.plan.entries.end(),
                   [](const PlanEntry& one) { return one.action == Action::quantize; });
  if (entry == ready.plan.entries.end())
    throw Error(ErrorKind::usage, "there is nothing to choose bits for: no module is quantized");
  const Quantizer& quantizer = *entry->quantizer;
  const auto with_bits = [&](const std::vector<std::pair<std::string, int>>& modules) {
    return call_plugin(entry->plugin, "bits of modules",
                       [&] { return quantizer.with_bits(given.quantization_config, modules); });
  };
  with_bits({});  // or it says why not, before anything is computed
  ready.plan.check(state_->options.strict);
  std::map<int, Plan> plans;
  for (const int bits : offered_bits(quantizer, entry->plugin)) {
    options.quantization_config.set("bits", bits);
    Plan made = plan(checkpoint, options);
    if (made.unportable.empty())
      plans.emplace(bits, std::move(made));
    else
      options.context.say(LogLevel::warning, "calibrate",
                          std::to_string(bits) + " bits are left out: " + made.unportable.front());
  }
  if (plans.size() < 2)
    throw Error(ErrorKind::usage,
                "the method " + quote(ready.plan.method) + " has no bits to choose from");
  const double least = plans.begin()->second.bits_per_weight();
  if (!(bits_per_weight >= least))
    throw Error(ErrorKind::usage, "no choice of bits is as small as that")
        .expected("at least " + std::to_string(least) + " bits a weight")
        .found(std::to_string(bits_per_weight))
        .hint("larger groups take less for their scales");
  options.quantization_config = given.quantization_config;
  BitsChooser chooser(plans, options.context);
  load_observed(checkpoint, options, [&](const ModuleGroup& group) { chooser.measure(group); });
  if (ready.model->output() == Model::Output::logits)
    told_to_ranks(options.ranks, [&] {
      fill_dense(ready.model, ready.plan, checkpoint, options.context);
      ready.model->eval();
      chooser.weigh(ready.model, options.calibration, options.ranks);
    });
  options.quantization_config = with_bits(chooser.choose(bits_per_weight));
  chooser.check(plan(checkpoint, options));
  return options.quantization_config;
}

LoadedModel Host::load_observed(const Checkpoint& checkpoint, const LoadOptions& options,
                                const GroupObserver& observe) const {
  return told_to_ranks(options.ranks,
                       [&] { return load_together(checkpoint, options, observe); });
}

LoadedModel Host::load_together(const Checkpoint& checkpoint, const LoadOptions& options,
                                const GroupObserver& observe) const {
  for (const auto& device : options.device.devices()) require_device(device);
  // Nothing here has a gradient: autograd's layers are left out, and the memory of their code.
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  State::Prepared ready = state_->prepare(*this, checkpoint, options);
  for (const auto& device : ready.plan.devices.devices()) require_device(device);
  ready.plan.check(state_->options.strict);
  if (ready.quantizer && ready.quantizer->pre_quantized()) {
    ready.settle(checkpoint, options.context);
    ready.plan.check(state_->options.strict);
  }
  for (const auto* list : {&ready.plan.notes, &ready.plan.doubts, &ready.plan.unmatched})
    for (const auto& note : *list) options.context.say(LogLevel::warning, "plan", note);
  if (!ready.plan.unexpected.empty())
    options.context.say(
        LogLevel::warning, "plan",
        std::to_string(ready.plan.unexpected.size()) +
            " tensor(s) of the checkpoint belong to no module and are not loaded, first " +
            ready.plan.unexpected.front());
  if (!ready.plan.unloaded.empty())
    options.context.say(LogLevel::info, "plan",
                        std::to_string(ready.plan.unloaded.size()) +
                            " tensor(s) of the checkpoint are not loaded, first " +
                            quote(ready.plan.unloaded.front().source) + ": " +
                            ready.plan.unloaded.front().reason);
  LoadedModel loaded{ready.model, ready.plan, checkpoint, nullptr, {}, {}};
  const bool calibrated = ready.quantizer && !ready.quantizer->pre_quantized() &&
                          uses_calibration(ready.plan, options.calibration, *ready.model);
  require_useful(options, ready.plan, calibrated);
  if (ready.quantizer && ready.quantizer->pre_quantized())
    ready.quantizer->convert_model_for_quantization(ready.model);
  if (calibrated) {
    written_settings(ready.plan, *ready.quantizer->config());  // or it says why not, before hours
    std::optional<TemporaryFolder> of_rank;  // outlives the journal in it
    std::optional<Journal> journal;
    if (options.ranks || !options.state.folder.empty()) {
      const auto job = describe_job(checkpoint, ready.plan, ready.quantizer->describe(),
                                    state_->plugins, options);
      if (options.ranks) require_same_job(*options.ranks, job);
      JobState state = options.state;
      if (options.ranks && options.ranks->rank() > 0) state.folder = of_rank.emplace().path();
      if (!options.state.folder.empty()) journal.emplace(state, job, options.context);
    }
    fill_kept(ready.model, ready.plan, checkpoint, options.context);
    const auto batches = in_batches(options.calibration, options.polish_steps > 0);
    const auto run = [&](std::int64_t i, const Batch::AroundLayer& around_layer) {
      const c10::NoGradGuard guard;  // polishing differentiates what is made here
      Batch batch;
      batch.around_layer = around_layer;
      batch.input_ids = batches[static_cast<std::size_t>(i)];
      batch.last_logits_only = true;
      ready.model->forward(batch);
    };
    auto calibrated_by = quantize_calibrated(
        ready.model, ready.plan,
        {options.recipe, options.all_experts, &checkpoint, journal ? &*journal : nullptr,
         options.ranks, options.polish_steps, options.search_by_block, observe},
        static_cast<std::int64_t>(batches.size()), run, options.context, {});
    loaded.calibration = std::move(calibrated_by.groups);
    loaded.polished = std::move(calibrated_by.layers);
  } else {
    fill_from(ready.model, ready.plan, checkpoint, options.context, {}, FillTo::planned);
  }
  verify_filled(ready.model);
  ready.model->eval();
  if (calibrated) move_to_devices(ready.model, ready.plan);
  dispatch_model(ready.model, ready.plan);
  if (ready.quantizer) {
    loaded.config = ready.quantizer->config();
    loaded.quantization_config = ready.quantizer->describe();
  }
  return loaded;
}

}  // namespace graft
