#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <filesystem>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/model.h"
#include "graft/tensors.h"
#include "model_folder.h"

// Golden model folders of other libraries, and what the tests of models do with them.
namespace graft::tests {

using test::golden;
using test::TemporaryFolder;

inline at::Tensor read_tensor(const std::filesystem::path& file, const std::string& name) {
  const Checkpoint tensors = Checkpoint::open_file(file);
  const TensorInfo& info = tensors.at(name);
  auto out = at::empty(info.shape, scalar_type(info.dtype));
  tensors.read(info, out.mutable_data_ptr());
  return out;
}

inline at::Tensor forward(Model& model, const at::Tensor& ids, KvCache* cache = nullptr) {
  Batch batch;
  batch.input_ids = ids;
  batch.cache = cache;
  return model.forward(batch);
}

inline double distance(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return 1e30;
  return (a.to(at::kFloat) - b.to(at::kFloat)).abs().max().item<double>();
}

/// Every folder of tests/golden/arch.
inline std::vector<std::string> architectures() {
  return {"bert",  "deepseek_v3", "gemma2",      "gemma3_text", "gpt2",    "gpt_oss",
          "llama", "llama31",     "llama4_text", "mistral",     "mixtral", "olmo2",
          "opt",   "phi3",        "qwen2",       "qwen2_moe",   "qwen3",   "qwen3_moe"};
}

}  // namespace graft::tests
