#include <set>

#include "applying/convert.h"
#include "checkpoint/model_files.h"
#include "graft/error.h"
#include "graft/host.h"
#include "graft/tensors.h"
#include "host_state.h"
#include "planning/settings.h"
#include "planning/written_settings.h"
#include "plugins/call.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

/// Those of a checkpoint as they came; of what was quantized here, all that other readers need.
Value settings_to_write(const LoadedModel& loaded) {
  if (loaded.plan.pre_quantized || !loaded.quantization_config.is_object() || !loaded.config)
    return loaded.quantization_config;
  return written_settings(loaded.plan, *loaded.config);
}

/// The model's config with the settings in the place where the checkpoint has them.
Value config_to_write(const LoadedModel& loaded, const Value& settings) {
  Value config = loaded.checkpoint.config();
  Value* holder = &config;
  if (!config.find("quantization_config"))
    for (auto& [key, value] : config.as_object())
      if (key == "text_config" && value.find("quantization_config")) holder = &value;
  if (settings.is_object())
    holder->set("quantization_config", settings);
  else
    holder->erase("quantization_config");
  if (loaded.plan.pre_quantized) return config;
  config.erase("torch_dtype");
  config.set("dtype", dtype_word(loaded.plan.dtype));
  return config;
}

/// Settings files that the checkpoint has follow the settings; a new model gets its method's first.
void write_settings_files(const LoadedModel& loaded, const Value& settings, FolderWriter& writer) {
  const Quantizer* quantizer = quantizer_of(loaded.plan);
  if (!quantizer || !settings.is_object()) return;
  const auto names = quantizer->settings_files();
  for (const auto& name : names) {
    Value side = loaded.plan.pre_quantized ? read_settings_file(loaded.checkpoint, name) : Value();
    if (side.is_object()) {
      // What has changed since goes into the file, also where it has no such field yet.
      const Value* given = quantization_config_of(loaded.checkpoint.config());
      const Value before = call_plugin(loaded.plan.plugin, name, [&] {
        return quantizer->describe(*quantizer->parse(given ? *given : side));
      });
      for (const auto& [key, value] : settings.as_object()) {
        const Value* was = before.find(key);
        if (was ? *was != value : !value.is_null()) side.set(key, value);
      }
      for (auto& [key, value] : side.as_object())
        if (const Value* now = settings.find(key); now && !same_settings(*now, value))
          value = *now;
    } else if (!loaded.plan.pre_quantized && name == names.front()) {
      side = settings;
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
static void write_folder(const LoadedModel& loaded, const Value& settings,
                         const std::set<std::string>& settings_files,
                         std::vector<TensorToWrite> tensors, FolderWriter& writer) {
  std::error_code error;
  const auto folders = folders_of_model(loaded.checkpoint.folder());
  for (const auto& entry : fs::directory_iterator(loaded.checkpoint.folder(), error))
    if (!settings_files.contains(entry.path().filename().string()) && is_companion(entry, folders))
      writer.copy_file(entry.path());
  writer.write_text("config.json", to_json(config_to_write(loaded, settings), 2) + "\n");
  write_settings_files(loaded, settings, writer);
  writer.write_tensors(std::move(tensors));
  writer.commit();
}

void Host::save(const LoadedModel& loaded, const fs::path& folder,
                const WriteOptions& options) const {
  // What does not fit is found before anything is made.
  const Value settings = settings_to_write(loaded);
  auto tensors = tensors_to_write(loaded.model, loaded.plan, loaded.checkpoint);
  FolderWriter writer(folder, options, {loaded.checkpoint.folder()});
  write_folder(loaded, settings, state_->settings_files(), std::move(tensors), writer);
}

void Host::save(const LoadedModel& loaded, FolderWriter& writer) const {
  write_folder(loaded, settings_to_write(loaded), state_->settings_files(),
               tensors_to_write(loaded.model, loaded.plan, loaded.checkpoint), writer);
}

}  // namespace graft
