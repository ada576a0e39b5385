#include "graft/host.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "applying/convert.h"
#include "graft/module_graph.h"
#include "host_state.h"
#include "planning/settings.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

/// The rules that come with graft lie beside the library: <dir of
/// libgraft.so>/graft/registry/*.yaml.
std::vector<fs::path> installed_registry() {
  Dl_info info{};
  std::vector<fs::path> files;
  if (dladdr(reinterpret_cast<const void*>(&installed_registry), &info) == 0 || !info.dli_fname)
    return files;
  std::error_code error;
  const fs::path folder =
      fs::weakly_canonical(info.dli_fname, error).parent_path() / "graft" / "registry";
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

const Value* quantization_config_of(const Value& config) {
  if (const Value* found = config.find("quantization_config")) return found;
  if (const Value* text = config.find("text_config")) return text->find("quantization_config");
  return nullptr;
}

at::ScalarType model_dtype(const Checkpoint& checkpoint) {
  const Value& config = checkpoint.config();
  for (const char* field : {"dtype", "torch_dtype"}) {
    if (!config.find(field)) continue;
    const std::string word = config.get_string(field, "");
    const auto type = dtype_from_word(word);
    if (!type || !c10::isFloatingType(*type))
      throw Error(ErrorKind::model, "unknown model dtype")
          .at("config.json: field " + quote(field))
          .expected("float32, float16 or bfloat16")
          .found(quote(word));
    return *type;
  }
  for (const auto& info : checkpoint.tensors())
    if (is_float(info.dtype)) return scalar_type(info.dtype);
  return at::kFloat;
}

void Host::State::rebuild_registry() {
  Registry::Builder builder;
  builder.add_claims(claims);
  for (const auto* library : plugins.libraries())
    if (const auto& file = library->registry_file()) builder.add_file(*file, Tier::plugin);
  for (const auto& file : installed_registry()) builder.add_file(file, Tier::installed);
  for (const auto& file : options.registry_files) builder.add_file(file, Tier::command_line);
  for (const auto& patch : patches)
    builder.add_text("graft: 1\npatches: [" + patch + "]\n", "API", Tier::command_line);
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
  request.restructures = [this](const std::string& name) {
    const auto found = replacements.find(name);
    return found == replacements.end() ? Restructure{} : Restructure(found->second);
  };
  return request;
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
  state_->replacements[std::move(name)] = std::move(build);
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

Host::State::Prepared Host::State::prepare(const Host& host, const Checkpoint& checkpoint,
                                           const LoadOptions& given) const {
  std::vector<Offer> offers;
  for (const auto& claim : claims)
    if (const auto* offered = quantizer(claim.plugin_id, claim.method))
      offers.push_back({claim.method, offered});
  Prepared out;
  out.settings = find_settings(checkpoint, given, offers,
                               [&](const Value& value) { return find_method(value); });
  const Settings& settings = out.settings;
  const auto dtype = given.dtype.value_or(model_dtype(checkpoint));
  out.model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(dtype));
  const bool has_weights = !checkpoint.tensors().empty();
  if (settings.value.is_object()) {
    try {
      out.quantizer = ModelQuantizer::from_config(host, settings.value, settings.from_checkpoint);
    } catch (Error& error) {
      if (settings.from_checkpoint) error.at((checkpoint.folder() / "config.json").string());
      throw;
    }
    out.quantizer->validate_environment(given.device);
    out.set_plan(
        out.quantizer->make_plan(out.model, has_weights ? &checkpoint : nullptr, dtype));
  } else {
    if (given.device != at::kCPU)
      throw Error(ErrorKind::usage, "only the device cpu is supported yet");
    PlanRequest dense = request();
    dense.checkpoint = has_weights ? &checkpoint : nullptr;
    dense.dtype = dtype;
    out.set_plan(make_plan(out.model, dense));
  }
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
  if (!ready.quantizer || !ready.quantizer->pre_quantized() || !whole || checkpoint.tensors().empty())
    return ready.plan;
  try {
    ready.settle(checkpoint, options.context);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::model) throw;
    ready.plan.refusal = error.what();
  }
  return ready.plan;
}

LoadedModel Host::load(const Checkpoint& checkpoint, const LoadOptions& options) const {
  State::Prepared ready = state_->prepare(*this, checkpoint, options);
  ready.plan.check(state_->options.strict);
  if (ready.quantizer && ready.quantizer->pre_quantized()) {
    ready.settle(checkpoint, options.context);
    ready.plan.check(state_->options.strict);
  }
  for (const auto* list : {&ready.plan.notes, &ready.plan.doubts})
    for (const auto& note : *list) options.context.say(LogLevel::warning, "plan", note);
  if (!ready.plan.unexpected.empty())
    options.context.say(
        LogLevel::warning, "plan",
        std::to_string(ready.plan.unexpected.size()) +
            " tensor(s) of the checkpoint belong to no module and are not loaded, first " +
            ready.plan.unexpected.front());
  LoadedModel loaded{ready.model, ready.plan, checkpoint, nullptr, {}};
  if (ready.quantizer && ready.quantizer->pre_quantized())
    ready.quantizer->convert_model_for_quantization(ready.model);
  fill_from(ready.model, ready.plan, checkpoint, options.context, {});
  verify_filled(ready.model);
  ready.model->eval();
  if (ready.quantizer) {
    loaded.config = ready.quantizer->config();
    loaded.quantization_config = ready.quantizer->describe();
  }
  return loaded;
}

}  // namespace graft
