#include "models/restructurings.h"

#include <map>
#include <string>

namespace graft {

namespace {

const std::map<std::string, Restructuring, std::less<>>& table() {
  static const std::map<std::string, Restructuring, std::less<>> kTable{
      {"SequentialDeepseekV3Experts", {sequential_deepseek_v3_experts, nullptr}},
      {"SequentialGptOssExperts", {sequential_gpt_oss_experts, nullptr, true}},
      {"SequentialLlama4TextExperts", {sequential_llama4_text_experts, nullptr, true}},
      {"SequentialMixtralExperts", {sequential_mixtral_experts, nullptr}},
      {"SequentialQwen2MoeExperts", {sequential_qwen2_moe_experts, nullptr}},
      {"SequentialQwen3MoeExperts", {sequential_qwen3_moe_experts, nullptr}},
  };
  return kTable;
}

}  // namespace

const Restructuring* model_restructuring(std::string_view name) {
  const auto found = table().find(name);
  return found == table().end() ? nullptr : &found->second;
}

std::vector<std::string> model_restructuring_names() {
  std::vector<std::string> names;
  for (const auto& [name, how] : table()) names.push_back(name);
  return names;
}

}  // namespace graft
