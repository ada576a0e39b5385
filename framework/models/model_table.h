#pragma once

#include "graft/model.h"

namespace graft {

// One line a model_type here, one in the table of model_table.cpp, one file for the architecture.
std::shared_ptr<Model> make_bert(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_deepseek_v3(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_gemma2(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_gemma3_text(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_gpt2(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_gpt_oss(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_llama(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_llama4_text(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_mistral(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_mixtral(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_olmo2(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_opt(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_phi3(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_qwen2(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_qwen2_moe(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_qwen3(const Value& config, const at::TensorOptions& options);
std::shared_ptr<Model> make_qwen3_moe(const Value& config, const at::TensorOptions& options);

}  // namespace graft
