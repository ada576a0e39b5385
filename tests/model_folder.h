#pragma once

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/value.h"
#include "temporary_folder.h"

namespace graft::test {

inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(GRAFT_TEST_DATA) / name;
}

/// The config.json of a golden folder with fields replaced; a null value removes one.
inline Value config_of(const std::string& name,
                       const std::vector<std::pair<std::string, Value>>& changes = {}) {
  Value config = parse_json(read_file(golden(name) / "config.json"));
  for (const auto& [key, value] : changes) {
    config.erase(key);
    if (!value.is_null()) config.set(key, value);
  }
  return config;
}

/// A copy of a golden folder in which a test may change things.
struct ModelFolder : TemporaryFolder {
  explicit ModelFolder(const std::string& name,
                       const std::vector<std::pair<std::string, Value>>& changes = {}) {
    write("config.json", to_json(config_of(name, changes)));
    std::filesystem::copy_file(golden(name) / "model.safetensors", path() / "model.safetensors");
  }
};

/// A folder with this config.json and no weights.
struct ConfigFolder : TemporaryFolder {
  explicit ConfigFolder(const Value& config) { write("config.json", to_json(config)); }
  Checkpoint open() const {
    OpenOptions options;
    options.weights_optional = true;
    return Checkpoint::open(path(), options);
  }
};

/// What config.json of Llama-3.1-70B holds.
inline Value llama_70b() {
  return parse_json(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","dtype":"bfloat16",
    "hidden_size":8192,"intermediate_size":28672,"num_hidden_layers":80,"num_attention_heads":64,
    "num_key_value_heads":8,"vocab_size":128256,"rms_norm_eps":1e-05,"hidden_act":"silu",
    "max_position_embeddings":131072,"rope_theta":500000.0,"tie_word_embeddings":false})");
}

/// Resident memory of this process in bytes.
inline std::uint64_t resident_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

}  // namespace graft::test
