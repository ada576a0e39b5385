#include "applying/saving.h"

#include <ATen/ATen.h>
#include <c10/util/accumulate.h>

#include "applying/checkpoint_tensors.h"
#include "applying/convert.h"
#include "applying/swaps.h"
#include "checkpoint/folder.h"
#include "checkpoint/model_files.h"
#include "graft/error.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/quantizer.h"
#include "graft/tensors.h"
#include "host_state.h"
#include "planning/settings.h"
#include "planning/written_settings.h"
#include "plugins/call.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

/// The model's config with the settings in the place where the checkpoint has them.
Value config_to_write(const ModelToWrite& from) {
  Value config = from.config;
  Value* holder = &config;
  if (!config.find("quantization_config"))
    for (auto& [key, value] : config.as_object())
      if (key == "text_config" && value.find("quantization_config")) holder = &value;
  if (from.settings.is_object())
    holder->set("quantization_config", from.settings);
  else
    holder->erase("quantization_config");
  if (from.plan.pre_quantized) return config;
  config.erase("torch_dtype");
  config.set("dtype", dtype_word(from.plan.dtype));
  return config;
}

/// Settings files that the checkpoint has follow the settings; a new model gets its method's first.
void write_settings_files(const ModelToWrite& from, FolderWriter& writer) {
  const Quantizer* quantizer = quantizer_of(from.plan);
  if (!quantizer || !from.settings.is_object()) return;
  const auto names = call_plugin(from.plan.plugin, "names of settings files",
                                 [&] { return quantizer->settings_files(); });
  for (const auto& name : names) {
    Value side = from.plan.pre_quantized ? read_settings_file(*from.checkpoint, name) : Value();
    if (side.is_object()) {
      // What has changed since goes into the file, also where it has no such field yet.
      const Value* given = quantization_config_of(from.config);
      const Value before = call_plugin(from.plan.plugin, name, [&] {
        return quantizer->describe(*quantizer->parse(given ? *given : side));
      });
      for (const auto& [key, value] : from.settings.as_object()) {
        const Value* was = before.find(key);
        if (was ? *was != value : !value.is_null()) side.set(key, value);
      }
      for (auto& [key, value] : side.as_object())
        if (const Value* now = from.settings.find(key); now && !same_settings(*now, value))
          value = *now;
    } else if (!from.plan.pre_quantized && name == names.front()) {
      side = from.settings;
    } else {
      continue;
    }
    writer.write_text(name, to_json(side, 2) + "\n");
  }
}

/// The name in the checkpoint of an entry's tensor.
std::string source_name(const PlanEntry& entry, const std::string& name) {
  for (const auto& tensor : entry.tensors)
    if (tensor.name == name && !tensor.into && !(tensor.of_source && tensor.of_source->index >= 0))
      return tensor.source;
  const auto& path = entry.source_path.empty() ? entry.spec.path : entry.source_path;
  return path.empty() ? name : path + "." + name;
}

/// Refuses a quantized module that the plan does not know as one: its plugin alone could write it.
void require_dense(const nn::Block& block, const ModuleSpec& now, const std::string& path) {
  if (now.in_features <= 0 || now.out_features <= 0) return;
  bool has_codes = false;
  for (const auto& [name, tensor] : block.own_tensors()) {
    has_codes |= !tensor.is_floating_point();
    if (name == "weight" && tensor.is_floating_point() &&
        tensor.numel() == now.in_features * now.out_features)
      return;
  }
  if (!has_codes) return;
  throw Error(ErrorKind::usage, "the module was quantized by another ModelQuantizer")
      .at(path)
      .expected("a dense module, or one that this plan converts")
      .found(class_name_of(block))
      .hint("let one ModelQuantizer convert all of the model");
}

/// A tensor of a module that was restructured, joined again from those of its replacement.
struct Joined {
  std::string name;  ///< in the checkpoint
  std::vector<std::int64_t> shape;
  std::vector<std::pair<nn::Region, at::Tensor>> parts;
};

/// The tensors of a dense model that are in its checkpoints in one piece, by the model's names of
/// their parts.
std::map<std::string, std::shared_ptr<Joined>> joined_tensors(const ModelToWrite& from) {
  std::map<std::string, const PlanEntry*> entries;
  for (const auto& entry : from.plan.entries) entries[entry.spec.path] = &entry;
  std::map<std::string, std::shared_ptr<Joined>> out;
  for (const auto& entry : from.plan.entries) {
    std::map<std::string, std::shared_ptr<Joined>> whole;
    for (const auto& part : entry.parts) {
      const auto shape = entry.in_one_piece.find(part.from);
      if (shape == entry.in_one_piece.end()) continue;
      const std::string full = entry.spec.path + "." + part.to;
      const auto [path, name] = split_name(full);
      auto& joined = whole[part.from];
      if (!joined) {
        const std::string source = source_name(*entries.at(path), name);
        const auto prefix = source.substr(0, source.size() - part.to.size());
        joined = std::make_shared<Joined>(Joined{prefix + part.from, shape->second, {}});
      }
      joined->parts.emplace_back(part.region, tensor_at(from.model, full));
      out[full] = joined;
    }
    for (const auto& [name, joined] : whole) {
      std::int64_t covered = 0;
      for (const auto& [region, tensor] : joined->parts) covered += tensor.numel();
      if (covered != c10::multiply_integers(joined->shape))
        throw Error(ErrorKind::plugin, "the map of a replacement does not cover a tensor")
            .at(name)
            .at(entry.spec.path);
    }
  }
  return out;
}

TensorToWrite joined_to_write(const std::shared_ptr<Joined>& joined) {
  const auto type = joined->parts.front().second.scalar_type();
  return {joined->name, dtype_of(type), joined->shape, [joined, type] {
            const auto whole = at::empty(joined->shape, at::TensorOptions(type));
            for (const auto& [region, tensor] : joined->parts)
              region.of(whole).copy_(tensor.detach());
            return to_write({}, whole).data();
          }};
}

/// The bytes of the checkpoint itself, read when their turn comes.
TensorToWrite as_stored(const Checkpoint& checkpoint, const TensorInfo& info) {
  return {info.name, info.dtype, info.shape, [checkpoint, info] {
            const std::shared_ptr<char[]> bytes(new char[info.bytes]);
            checkpoint.read(info, bytes.get());
            return std::shared_ptr<const void>(bytes, bytes.get());
          }};
}

ModelToWrite model_to_write(const LoadedModel& loaded) {
  return {loaded.model, loaded.plan, &loaded.checkpoint, loaded.checkpoint.config(),
          settings_to_write(loaded.plan, loaded.config, loaded.quantization_config)};
}

}  // namespace

Value settings_to_write(const Plan& plan, const QuantConfigPtr& config, const Value& described) {
  if (plan.pre_quantized || !described.is_object() || !config) return described;
  return written_settings(plan, *config);
}

std::vector<TensorToWrite> tensors_to_write(const ModelToWrite& from) {
  const Plan& plan = from.plan;
  const std::set<std::string> tied(plan.tied.begin(), plan.tied.end());
  std::vector<TensorToWrite> out;
  std::set<std::string> written;
  // Saved tensors of all modules are as much memory as the modules: each is saved once for its
  // layout, and once more when its turn to be written comes.
  struct Saved {
    const nn::Block* of = nullptr;
    Tensors tensors;
  };
  const auto latest = std::make_shared<Saved>();
  const auto write = [&](TensorToWrite tensor) {
    written.insert(tensor.name);
    out.push_back(std::move(tensor));
  };
  // Experts that are quantized are separate in every reader's files.
  const auto joined = from.settings.is_object()
                          ? std::map<std::string, std::shared_ptr<Joined>>()
                          : joined_tensors(from);
  for (const auto& entry : plan.entries) {
    if (entry.action == Action::restructure) continue;
    const auto module = module_at(from.model, entry.spec.path);
    const auto* as_block = dynamic_cast<const nn::Block*>(module.get());
    if (!as_block) {
      for (const auto& tensor : module->named_parameters(/*recurse=*/false))
        write(to_write(source_name(entry, tensor.key()), tensor.value()));
      continue;
    }
    const nn::Block& block = *as_block;
    if (entry.action == Action::quantize && class_name_of(block) == entry.replacement) {
      const auto save = [&entry, &block] {
        return call_plugin(entry.plugin, entry.spec.path,
                           [&] { return entry.quantizer->save(block, *entry.config); });
      };
      for (const auto& [name, tensor] : save()) {
        auto later = to_write(source_name(entry, name), tensor);
        later.data = [latest, save, &block, name = name] {
          if (latest->of != &block) {
            *latest = {};
            *latest = {&block, save()};
          }
          return to_write({}, latest->tensors.at(name)).data();
        };
        write(std::move(later));
      }
      // What the module came with belongs to it, whether its new layout has it or not.
      for (const auto& planned : entry.tensors) written.insert(planned.source);
      continue;
    }
    ModuleSpec now;
    block.describe(now);
    require_dense(block, now, entry.spec.path);
    for (const auto& [name, tensor] : block.own_tensors()) {
      if (tied.contains(entry.spec.path + "." + name)) continue;
      if (const auto at = joined.find(entry.spec.path + "." + name); at != joined.end()) {
        if (!written.contains(at->second->name)) write(joined_to_write(at->second));
        continue;
      }
      bool in_parts = false;
      for (const auto& planned : entry.tensors)
        if (planned.name == name && planned.into) {
          in_parts = true;
          write(to_write(planned.source, planned.into->of(tensor)));
        }
      if (in_parts) continue;
      const std::string source = source_name(entry, name);
      const auto* info = plan.pre_quantized ? from.checkpoint->find(source) : nullptr;
      if (entry.action == Action::quantize && name == "bias" && !entry.spec.bias)
        throw Error(ErrorKind::usage, "the dense model has no place for this bias")
            .at(entry.spec.path + ".bias")
            .expected("a bias of zeros, or none")
            .hint("keep the model quantized: there the bias is added");
      // What was dequantized is [N, K]; the model's own layer may keep it the other way round.
      const bool turned = entry.spec.input_major && !now.input_major && name == "weight";
      const bool cast = info && scalar_type(info->dtype) != tensor.scalar_type();
      if (cast &&
          in_dtype(read_tensor(*from.checkpoint, *info), tensor.scalar_type()).equal(tensor))
        write(as_stored(*from.checkpoint, *info));
      else
        write(to_write(source, turned ? tensor.t() : tensor));
    }
  }
  if (!from.checkpoint) {
    std::set<const torch::nn::Module*> seen;
    for (const auto& [path, module] : named_modules(from.model))
      if (seen.insert(module.get()).second)
        for (const auto& buffer : module->named_buffers(/*recurse=*/false))
          write(to_write(path.empty() ? buffer.key() : path + "." + buffer.key(), buffer.value()));
  } else if (plan.pre_quantized) {
    for (const auto& info : from.checkpoint->tensors())
      if (!written.contains(info.name)) out.push_back(as_stored(*from.checkpoint, info));
  } else {
    for (const auto& unloaded : plan.unloaded)
      if (unloaded.carried)
        out.push_back(as_stored(*from.checkpoint, from.checkpoint->at(unloaded.source)));
  }
  return out;
}

void write_model(const ModelToWrite& from, std::vector<TensorToWrite> tensors,
                 const std::set<std::string>& settings_files, FolderWriter& writer) {
  if (from.checkpoint) {
    const auto& folder = from.checkpoint->folder();
    const auto folders = folders_of_model(folder);
    for (const auto& name : names_in(folder))
      if (!settings_files.contains(name) && is_companion(folder / name, folders))
        writer.copy_file(folder / name);
  }
  writer.write_text("config.json", to_json(config_to_write(from), 2) + "\n");
  write_settings_files(from, writer);
  writer.write_tensors(std::move(tensors));
  writer.commit();
}

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

void Host::save(const LoadedModel& loaded, const fs::path& folder,
                const WriteOptions& options) const {
  // What does not fit is found before anything is made.
  const auto from = model_to_write(loaded);
  auto tensors = tensors_to_write(from);
  FolderWriter writer(folder, options, {loaded.checkpoint.folder()});
  write_model(from, std::move(tensors), state_->settings_files(), writer);
}

void Host::save(const LoadedModel& loaded, FolderWriter& writer) const {
  const auto from = model_to_write(loaded);
  write_model(from, tensors_to_write(from), state_->settings_files(), writer);
}

}  // namespace graft
