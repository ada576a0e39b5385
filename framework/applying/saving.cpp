#include <set>

#include "applying/convert.h"
#include "graft/error.h"
#include "graft/host.h"
#include "graft/tensors.h"
#include "host_state.h"
#include "planning/settings.h"
#include "plugins/call.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

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

/// The quantizer that parsed the settings, of a plan that quantizes something.
const Quantizer* quantizer_of(const Plan& plan) {
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize && entry.plugin == plan.plugin) return entry.quantizer;
  return nullptr;
}

/// The model's config with the settings in the place where the checkpoint has them.
Value config_to_write(const LoadedModel& loaded) {
  Value config = loaded.checkpoint.config();
  Value* holder = &config;
  if (!config.find("quantization_config"))
    for (auto& [key, value] : config.as_object())
      if (key == "text_config" && value.find("quantization_config")) holder = &value;
  if (loaded.quantization_config.is_object())
    holder->set("quantization_config", loaded.quantization_config);
  else
    holder->erase("quantization_config");
  if (loaded.plan.pre_quantized) return config;
  config.erase("torch_dtype");
  config.set("dtype", dtype_word(loaded.plan.dtype));
  return config;
}

/// Settings files that the checkpoint has follow the settings; a new model gets its method's first.
void write_settings_files(const LoadedModel& loaded, FolderWriter& writer) {
  const Quantizer* quantizer = quantizer_of(loaded.plan);
  if (!quantizer || !loaded.quantization_config.is_object()) return;
  const auto names = quantizer->settings_files();
  for (const auto& name : names) {
    Value side = loaded.plan.pre_quantized ? read_settings_file(loaded.checkpoint, name) : Value();
    if (side.is_object()) {
      for (auto& [key, value] : side.as_object())
        if (const Value* now = loaded.quantization_config.find(key);
            now && !same_settings(*now, value))
          value = *now;
    } else if (!loaded.plan.pre_quantized && name == names.front()) {
      side = loaded.quantization_config;
    } else {
      continue;
    }
    writer.write_text(name, to_json(side, 2) + "\n");
  }
}

}  // namespace

void Host::set_format(LoadedModel& loaded, const std::string& format) const {
  const Quantizer* quantizer = quantizer_of(loaded.plan);
  if (!quantizer || !loaded.config)
    throw Error(ErrorKind::usage, "the model is not quantized, so it has no other format")
        .at(loaded.checkpoint.folder().string());
  call_plugin(loaded.plan.plugin, "--to " + format, [&] {
    loaded.config = quantizer->in_format(*loaded.config, format);
    loaded.quantization_config = quantizer->describe(*loaded.config);
  });
  for (auto& entry : loaded.plan.entries)
    if (entry.action == Action::quantize)
      call_plugin(entry.plugin, entry.spec.path,
                  [&] { entry.config = entry.quantizer->in_format(*entry.config, format); });
}

void Host::dequantize(LoadedModel& loaded, at::ScalarType dtype) const {
  dequantize_in_place(loaded.model, loaded.plan, dtype);
  loaded.config = nullptr;
  loaded.quantization_config = {};
  loaded.plan.pre_quantized = false;
  loaded.plan.dtype = dtype;
}

/// Writes and commits.
static void write_folder(const LoadedModel& loaded, std::vector<TensorToWrite> tensors,
                         FolderWriter& writer) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(loaded.checkpoint.folder(), error))
    if (is_companion(entry.path())) writer.copy_file(entry.path());
  writer.write_text("config.json", to_json(config_to_write(loaded), 2) + "\n");
  write_settings_files(loaded, writer);
  writer.write_tensors(std::move(tensors));
  writer.commit();
}

void Host::save(const LoadedModel& loaded, const fs::path& folder,
                const WriteOptions& options) const {
  // What does not fit is found before anything is made.
  auto tensors = tensors_to_write(loaded.model, loaded.plan, loaded.checkpoint);
  FolderWriter writer(folder, options, {loaded.checkpoint.folder()});
  write_folder(loaded, std::move(tensors), writer);
}

void Host::save(const LoadedModel& loaded, FolderWriter& writer) const {
  write_folder(loaded, tensors_to_write(loaded.model, loaded.plan, loaded.checkpoint), writer);
}

}  // namespace graft
