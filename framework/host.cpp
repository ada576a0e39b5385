#include "graft/host.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "applying/convert.h"
#include "graft/module_graph.h"
#include "host_state.h"
#include "models/restructurings.h"
#include "models/unknown_model.h"
#include "plugins/call.h"

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

/// Small files that belong to a model but not to its weights.
bool is_companion(const fs::path& file) {
  static const std::set<std::string> kNames{"generation_config.json",
                                            "tokenizer.json",
                                            "tokenizer_config.json",
                                            "special_tokens_map.json",
                                            "vocab.json",
                                            "vocab.txt",
                                            "merges.txt",
                                            "added_tokens.json",
                                            "chat_template.jinja",
                                            "tokenizer.model",
                                            "modules.json",
                                            "sentence_bert_config.json"};
  return kNames.contains(file.filename().string());
}

/// A tensor of the source that the model has no use for, as it is.
TensorToWrite carried(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo& info = checkpoint.at(name);
  return {name, info.dtype, info.shape, [checkpoint, &info] {
            const auto bytes = std::make_shared<std::vector<std::byte>>(info.bytes);
            checkpoint.read(info, bytes->data());
            return std::shared_ptr<const void>(bytes, bytes->data());
          }};
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

namespace {

/// The settings that hold for a checkpoint, and whether they describe it. Rules: formats.md 5.1.
struct Settings {
  const Value* value = nullptr;
  bool from_file = false;
};

Settings settings_for(const Host& host, const Checkpoint& checkpoint, const LoadOptions& options) {
  const Value* in_file =
      options.ignore_quantization_config ? nullptr : quantization_config_of(checkpoint.config());
  const bool given = options.quantization_config.is_object();
  if (!in_file) return {given ? &options.quantization_config : nullptr, false};
  if (given) {
    const std::string asked = options.quantization_config.get_string("quant_method", "");
    const std::string found = in_file->get_string("quant_method", "");
    if (!asked.empty() && !found.empty() && asked != found)
      throw Error(ErrorKind::usage, "the model is quantized already, by another method")
          .at((checkpoint.folder() / "config.json").string())
          .expected(quote(asked))
          .found(quote(found))
          .hint("dequantize it first, or give --ignore-quantization-config");
    host.options().context.say(
        LogLevel::warning, "host",
        "the model brings its own quantization_config, which wins over the one given");
  }
  return {in_file, true};
}

}  // namespace

namespace {

struct Prepared {
  std::shared_ptr<Model> model;  ///< skeleton on meta
  std::optional<ModelQuantizer> quantizer;
  Plan plan;
};

}  // namespace

/// Of an architecture that graft does not have, what the names of dense tensors tell.
static std::shared_ptr<Model> skeleton(const Checkpoint& checkpoint, const LoadOptions& options,
                                       const Settings& settings, at::ScalarType dtype) {
  if (!is_known_architecture(checkpoint.config())) {
    if (settings.value && options.structure) return build_unknown_model(*options.structure);
    if (settings.value && !settings.from_file && !checkpoint.tensors().empty())
      return build_unknown_model(checkpoint);
  }
  return build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(dtype));
}

static Prepared prepare(const Host& host, const Checkpoint& checkpoint, const LoadOptions& options,
                        const PlanRequest& base) {
  const Settings settings = settings_for(host, checkpoint, options);
  const auto dtype = options.dtype.value_or(model_dtype(checkpoint));
  Prepared out;
  out.model = skeleton(checkpoint, options, settings, dtype);
  const bool has_weights = !checkpoint.tensors().empty();
  if (settings.value) {
    out.quantizer = ModelQuantizer::from_config(host, *settings.value, settings.from_file);
    out.quantizer->validate_environment(options.device);
    out.plan = out.quantizer->make_plan(out.model, has_weights ? &checkpoint : nullptr, dtype);
  } else {
    if (options.device != at::kCPU)
      throw Error(ErrorKind::usage, "only the device cpu is supported yet");
    PlanRequest request = base;
    request.checkpoint = has_weights ? &checkpoint : nullptr;
    request.dtype = dtype;
    out.plan = make_plan(out.model, request);
  }
  if (!is_known_architecture(checkpoint.config()))
    out.plan.notes.push_back(
        "graft does not have the architecture " +
        quote(checkpoint.config().get_string("model_type", "")) +
        ": planned from names and shapes of tensors alone; nothing was run, nothing can be");
  return out;
}

Plan Host::plan(const Checkpoint& checkpoint, const LoadOptions& options) const {
  return prepare(*this, checkpoint, options, state_->request()).plan;
}

LoadedModel Host::load(const fs::path& folder, const LoadOptions& options) const {
  return load(Checkpoint::open(folder), options);
}

LoadedModel Host::load(const Checkpoint& checkpoint, const LoadOptions& options) const {
  Prepared ready = prepare(*this, checkpoint, options, state_->request());
  ready.plan.check(state_->options.strict);
  for (const auto& note : ready.plan.notes) options.context.say(LogLevel::warning, "plan", note);
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
  LoadedModel loaded{ready.model, ready.plan, checkpoint, {}};
  if (ready.quantizer && ready.quantizer->pre_quantized())
    ready.quantizer->convert_model_for_quantization(ready.model);
  fill_from(ready.model, ready.plan, checkpoint, options.context, {});
  verify_filled(ready.model);
  ready.model->eval();
  if (ready.quantizer) loaded.quantization_config = ready.quantizer->describe();
  return loaded;
}

void Host::save(const LoadedModel& loaded, const fs::path& folder,
                const WriteOptions& options) const {
  FolderWriter writer(folder, options, {loaded.checkpoint.folder()});
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(loaded.checkpoint.folder(), error))
    if (is_companion(entry.path())) writer.copy_file(entry.path());
  Value config = loaded.model->config();
  config.erase("quantization_config");
  config.erase("torch_dtype");
  config.set("dtype", dtype_word(loaded.plan.dtype));
  if (loaded.quantization_config.is_object())
    config.set("quantization_config", loaded.quantization_config);
  writer.write_text("config.json", to_json(config, 2) + "\n");
  auto tensors = tensors_to_write(loaded.model, loaded.plan);
  for (const auto& unloaded : loaded.plan.unloaded)
    if (unloaded.carried) tensors.push_back(carried(loaded.checkpoint, unloaded.source));
  writer.write_tensors(std::move(tensors));
  writer.commit();
}

}  // namespace graft
