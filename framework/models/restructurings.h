#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "graft/restructuring.h"

namespace graft {

/// A restructuring that comes with the models, by the name that registry rules use; nullptr when
/// there is none: "SequentialLlama4TextExperts".
const Restructuring* model_restructuring(std::string_view name);

std::vector<std::string> model_restructuring_names();

// The separate experts of a family, from the file of its architecture; a line in the table of
// restructurings.cpp each.
std::shared_ptr<nn::Block> sequential_deepseek_v3_experts(const ModuleSpec& spec,
                                                          const Value& text_config);
std::shared_ptr<nn::Block> sequential_gpt_oss_experts(const ModuleSpec& spec,
                                                      const Value& text_config);
std::shared_ptr<nn::Block> sequential_llama4_text_experts(const ModuleSpec& spec,
                                                          const Value& text_config);
std::shared_ptr<nn::Block> sequential_mixtral_experts(const ModuleSpec& spec,
                                                      const Value& text_config);
std::shared_ptr<nn::Block> sequential_qwen2_moe_experts(const ModuleSpec& spec,
                                                        const Value& text_config);
std::shared_ptr<nn::Block> sequential_qwen3_moe_experts(const ModuleSpec& spec,
                                                        const Value& text_config);

}  // namespace graft
