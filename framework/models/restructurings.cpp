#include "models/restructurings.h"

#include <map>
#include <string>

namespace graft {

const Restructuring* model_restructuring(std::string_view name) {
  static const std::map<std::string, Restructuring, std::less<>> kTable{
      {"SequentialDeepseekV3Experts", {sequential_deepseek_v3_experts, nullptr}},
      {"SequentialGptOssExperts", {sequential_gpt_oss_experts, nullptr}},
      {"SequentialLlama4TextExperts", {sequential_llama4_text_experts, nullptr}},
      {"SequentialMixtralExperts", {sequential_mixtral_experts, nullptr}},
      {"SequentialQwen2MoeExperts", {sequential_qwen2_moe_experts, nullptr}},
      {"SequentialQwen3MoeExperts", {sequential_qwen3_moe_experts, nullptr}},
  };
  const auto found = kTable.find(name);
  return found == kTable.end() ? nullptr : &found->second;
}

}  // namespace graft
