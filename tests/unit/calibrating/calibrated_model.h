#pragma once

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "../host/edited_folder.h"

namespace graft::test {

namespace fs = std::filesystem;

inline const fs::path kGolden = GRAFT_TEST_DATA;

inline TestHost& host() {
  static TestHost instance;
  return instance;
}

inline at::Tensor random_ids(const fs::path& folder, std::int64_t samples, std::int64_t length) {
  const auto vocabulary = Checkpoint::open(folder).config().get_int("vocab_size", 0);
  at::manual_seed(2);
  return at::randint(vocabulary, {samples, length}, at::kLong);
}

inline LoadedModel calibrated(const fs::path& folder, const std::string& settings,
                              const at::Tensor& ids = {}, Recipe recipe = Recipe::standard) {
  LoadOptions options;
  options.quantization_config = parse_json(settings);
  options.dtype = at::kFloat;
  options.calibration = ids.defined() ? ids : random_ids(folder, 4, 48);
  options.recipe = recipe;
  return host().host->load(folder, options);
}

inline at::Tensor logits(const LoadedModel& loaded, const at::Tensor& ids) {
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = ids;
  return loaded.model->forward(batch);
}

/// The model, saved and loaded again in float32.
inline LoadedModel saved_and_loaded(const LoadedModel& loaded) {
  const TemporaryFolder out;
  host().host->save(loaded, out.path() / "m");
  LoadOptions again;
  again.dtype = at::kFloat;
  return host().host->load(out.path() / "m", again);
}

inline const fs::path kLlama = kGolden / "vectors/tiny_llama_dense_fp16";
inline const fs::path kMoe = kGolden / "vectors/tiny_qwen3moe_dense_fp16";

inline constexpr const char* kSettings[] = {
    R"({"quant_method": "gptq", "bits": 4, "group_size": 32})",
    R"({"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": false})",
    R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true})",
    R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"})",
    R"({"quant_method": "awq", "bits": 4, "group_size": 32})",
    R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})",
    R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": true})"};

}  // namespace graft::test
