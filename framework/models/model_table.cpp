#include "models/model_table.h"

#include <array>

#include "graft/error.h"

namespace graft {
namespace {

struct Row {
  std::string_view model_type;
  std::shared_ptr<Model> (*make)(const Value&, const at::TensorOptions&);
};

constexpr std::array<Row, 2> kTable{{
    {"bert", make_bert},
    {"llama", make_llama},
}};

}  // namespace

Model::Model(std::string class_name, Value config)
    : Block(std::move(class_name)), config_(std::move(config)) {}
Model::~Model() = default;

const Value& Model::text_config() const {
  const Value* text = config_.find("text_config");
  return text ? *text : config_;
}

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const auto& row : kTable) names.emplace_back(row.model_type);
  return names;
}

std::shared_ptr<Model> build_model(const Value& config, const at::TensorOptions& options) {
  try {
    const std::string type = config.at("model_type").as_string();
    for (const auto& row : kTable)
      if (row.model_type == type) return row.make(config, options);
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
