#include "models/model_table.h"

#include <map>

#include "graft/error.h"
#include "models/unknown_model.h"

namespace graft {
namespace {

struct Row {
  std::string_view model_type;
  std::shared_ptr<Model> (*make)(const Value&, const at::TensorOptions&);
};

constexpr Row kTable[] = {
    {"bert", make_bert},           {"deepseek_v3", make_deepseek_v3},
    {"gemma2", make_gemma2},       {"gemma3_text", make_gemma3_text},
    {"gpt2", make_gpt2},           {"gpt_oss", make_gpt_oss},
    {"llama", make_llama},         {"llama4_text", make_llama4_text},
    {"mistral", make_mistral},     {"mixtral", make_mixtral},
    {"olmo2", make_olmo2},         {"opt", make_opt},
    {"phi3", make_phi3},           {"qwen2", make_qwen2},
    {"qwen2_moe", make_qwen2_moe}, {"qwen3", make_qwen3},
    {"qwen3_moe", make_qwen3_moe},
};

const Row* row_of(const Value& config) {
  const Value* type = config.find("model_type");
  if (!type) return nullptr;
  for (const auto& row : kTable)
    if (row.model_type == type->as_string()) return &row;
  return nullptr;
}

}  // namespace

Model::Model(std::string class_name, Value config)
    : Block(std::move(class_name)), config_(std::move(config)) {}
Model::~Model() = default;

void Model::to(torch::Device device, bool non_blocking) {
  struct Place {
    Block* block;
    std::string name;
  };
  std::map<const void*, std::vector<Place>> places;
  for (const auto& module : modules())
    if (auto* block = dynamic_cast<Block*>(module.get())) {
      block->set_execution_device(std::nullopt);
      for (const auto& [name, tensor] : block->own_tensors())
        places[tensor.unsafeGetTensorImpl()].push_back({block, name});
    }
  Block::to(device, non_blocking);
  for (const auto& [tensor, shared] : places)
    for (std::size_t i = 1; i < shared.size(); ++i)
      for (const auto& [name, moved] : shared[0].block->own_tensors())
        if (name == shared[0].name) shared[i].block->set_tensor(shared[i].name, moved);
}

const Value& Model::text_config() const {
  const Value* text = config_.find("text_config");
  return text && text->is_object() && !text->as_object().empty() ? *text : config_;
}

std::vector<UnusedTensors> Model::unused_tensors() const {
  static constexpr std::string_view kTowers[] = {
      "vision_tower.*",          "vision_model.*", "visual.*",
      "multi_modal_projector.*", "audio_tower.*",  "embed_vision.*",
      "vision_embed_tokens.*"};
  std::vector<UnusedTensors> out;
  for (const auto tower : kTowers)
    for (const char* before : {"", "model."})
      out.push_back({before + std::string(tower), "not part of the text model", true});
  out.push_back({"*.rotary_emb.inv_freq", "computed from the config", false});
  return out;
}

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& row : kTable) names.emplace_back(row.model_type);
  return names;
}

bool is_known_architecture(const Value& config) {
  const Value* text = config.find("text_config");
  return row_of(config) || (text && row_of(*text));
}

std::shared_ptr<Model> build_model(const Value& config, const at::TensorOptions& options) {
  try {
    const std::string type = config.at("model_type").as_string();
    if (const Row* row = row_of(config)) return row->make(config, options);
    if (const Value* text = config.find("text_config"))
      if (const Row* row = row_of(*text)) {
        auto model = row->make(*text, options);
        Value whole = config;
        whole.set("text_config", std::move(model->config_));
        model->config_ = std::move(whole);
        return model;
      }
    std::string known;
    for (const auto& row : kTable)
      known += (known.empty() ? "" : ", ") + std::string(row.model_type);
    throw Error(ErrorKind::model, "no model of this build has the model_type " + quote(type))
        .expected("one of " + known);
  } catch (Error& error) {
    throw error.at("config.json");
  }
}

}  // namespace graft
