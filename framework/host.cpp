#include "graft/host.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "applying/convert.h"
#include "graft/module_graph.h"
#include "host_state.h"

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

std::vector<std::string> Host::replacements() const {
  std::vector<std::string> names;
  for (const auto& [name, build] : state_->replacements) names.push_back(name);
  return names;
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

static Prepared prepare(const Host& host, const Checkpoint& checkpoint, const LoadOptions& options,
                        const PlanRequest& base) {
  const Settings settings = settings_for(host, checkpoint, options);
  const auto dtype = options.dtype.value_or(model_dtype(checkpoint));
  Prepared out;
  out.model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(dtype));
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
  for (const auto& note : ready.plan.unmatched)
    options.context.say(LogLevel::warning, "plan", note);
  for (const auto& field : ready.plan.unknown)
    options.context.say(LogLevel::warning, "plan",
                        "the field " + field + " of the quantization settings is unknown and unused");
  if (!ready.plan.unexpected.empty())
    options.context.say(
        LogLevel::warning, "plan",
        std::to_string(ready.plan.unexpected.size()) +
            " tensor(s) of the checkpoint belong to no module and are not loaded, first " +
            ready.plan.unexpected.front());
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
  writer.write_tensors(tensors_to_write(loaded.model, loaded.plan));
  writer.commit();
}

}  // namespace graft
