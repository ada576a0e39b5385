#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/host.h"
#include "temporary_folder.h"
#include "thrown_by.h"

namespace graft::test {

/// A tensor of a golden folder, to be changed before the folder is written again.
struct RawTensor {
  Dtype dtype{};
  std::vector<std::int64_t> shape;
  std::shared_ptr<std::vector<unsigned char>> bytes;

  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes->data());
  }
  std::size_t count() const { return bytes->size() / size_of(dtype); }
};

using RawTensors = std::map<std::string, RawTensor>;

/// A copy of a golden model folder with changes, in a temporary folder that goes with the object.
class EditedFolder : public TemporaryFolder {
 public:
  using Edit = std::function<void(Value& config, RawTensors& tensors)>;

  EditedFolder(const std::string& golden, const Edit& edit) : TemporaryFolder(in_memory()) {
    namespace fs = std::filesystem;
    const Checkpoint from = Checkpoint::open(fs::path(GRAFT_TEST_DATA) / golden);
    Value config = from.config();
    RawTensors tensors;
    for (const auto& info : from.tensors()) {
      RawTensor raw{info.dtype, info.shape,
                    std::make_shared<std::vector<unsigned char>>(info.bytes)};
      from.read(info, raw.bytes->data());
      tensors.emplace(info.name, std::move(raw));
    }
    edit(config, tensors);
    write("config.json", to_json(config, 2));
    std::vector<TensorToWrite> out;
    for (auto& [name, raw] : tensors)
      out.push_back({name, raw.dtype, raw.shape, [bytes = raw.bytes] {
                       return std::shared_ptr<const void>(bytes, bytes->data());
                     }});
    write_tensor_file(path() / "model.safetensors", std::move(out));
  }
};

/// Makes one channel between up_proj and down_proj far stronger than the others, as in trained models.
inline void strengthen_a_channel(const Value&, RawTensors& tensors) {
  for (auto& [name, tensor] : tensors)
    if (name.find("up_proj") != std::string::npos) {
      auto* row = tensor.data<c10::Half>();
      for (std::int64_t i = 0; i < tensor.shape[1]; ++i) row[i] = row[i] * 40.0F;
    }
}

/// A host with the plugins of this build, and what it was warned of.
struct TestHost {
  explicit TestHost(const std::function<void(HostOptions&)>& change = {}) {
    HostOptions options;
    options.default_plugin_path = false;
    options.plugin_directories = {std::filesystem::path(GRAFT_BINARY_DIR) / "lib/graft/plugins"};
    if (change) change(options);
    host.emplace(std::move(options));
  }

  /// What load() throws; empty when it loads.
  std::string refusal(const EditedFolder& folder) {
    try {
      LoadOptions options;
      options.dtype = at::kFloat;
      loaded.emplace(host->load(folder.path(), options));
      return "";
    } catch (const Error& error) {
      kind = error.kind();
      return error.what();
    }
  }

  std::optional<Host> host;
  std::optional<LoadedModel> loaded;
  ErrorKind kind{};
};

/// The quantization_config of a config.
inline Value& settings_of(Value& config) {
  for (auto& [key, value] : config.as_object())
    if (key == "quantization_config") return value;
  throw std::runtime_error("no quantization_config");
}

}  // namespace graft::test
