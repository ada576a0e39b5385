#include "models/config_fields.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::string_view kOfWeights = "get the config.json that belongs to the weights";

constexpr std::int64_t kMostSize = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostCount = 10'000;

std::int64_t checked(std::string_view field, std::int64_t value, std::int64_t most = kMostSize) {
  if (value < 1 || value > most)
    throw Error(ErrorKind::model, "the field " + quote(field) + " is out of range")
        .expected("1 to " + std::to_string(most))
        .found(std::to_string(value))
        .hint(kOfWeights);
  return value;
}

}  // namespace

Value with_defaults(const Value& config, std::string_view defaults) {
  const auto& fields = config.as_object();
  const Value all = parse_json(defaults);
  Value out = config;
  for (const auto& [name, value] : all.as_object())
    if (std::none_of(fields.begin(), fields.end(),
                     [&](const auto& field) { return field.first == name; }))
      out.set(name, value);
  return out;
}

std::int64_t required_size(const Value& config, std::string_view field) {
  config.at(field);
  return checked(field, config.get_int(field, 0));
}

std::int64_t optional_size(const Value& config, std::string_view field, std::int64_t otherwise) {
  return checked(field, config.get_int(field, otherwise));
}

std::int64_t required_count(const Value& config, std::string_view field) {
  config.at(field);
  return checked(field, config.get_int(field, 0), kMostCount);
}

std::int64_t optional_count(const Value& config, std::string_view field, std::int64_t otherwise) {
  return checked(field, config.get_int(field, otherwise), kMostCount);
}

std::int64_t size_or_none(const Value& config, std::string_view field) {
  const std::int64_t value = config.get_int(field, 0);
  return value == 0 ? 0 : checked(field, value);
}

double number_or_none(const Value& config, std::string_view field) {
  const double value = config.get_double(field, 0);
  if (!(value >= 0) || !std::isfinite(value))
    throw Error(ErrorKind::model, "the field " + quote(field) + " is out of range")
        .expected("a number from 0")
        .found(std::to_string(value))
        .hint(kOfWeights);
  return value;
}

std::vector<bool> layers_of_type(const Value& config, std::string_view kind, std::int64_t layers,
                                 bool (*otherwise)(std::int64_t, const Value&)) {
  std::vector<bool> out;
  const Value* types = config.find("layer_types");
  if (!types) {
    for (std::int64_t i = 0; i < layers; ++i) out.push_back(otherwise(i, config));
    return out;
  }
  const auto& list = types->as_array();
  if (static_cast<std::int64_t>(list.size()) != layers)
    throw Error(ErrorKind::model, "'layer_types' has another length than the model has layers")
        .expected(std::to_string(layers))
        .found(std::to_string(list.size()));
  for (const auto& type : list) {
    const std::string& word = type.as_string();
    if (word != kind && word != "full_attention")
      throw Error(ErrorKind::model, "unsupported layer type")
          .at("field 'layer_types'")
          .expected("full_attention or " + std::string(kind))
          .found(quote(word));
    out.push_back(word == kind);
  }
  return out;
}

void refuse_field(const Value& config, std::string_view field) {
  if (config.get_bool(field, false))
    throw Error(ErrorKind::model, "graft does not do what the field " + quote(field) + " asks for")
        .expected("false");
}

void require_top_k(std::int64_t top_k, std::int64_t experts) {
  if (top_k > experts)
    throw Error(ErrorKind::model, "a token cannot go to more experts than there are")
        .at("field 'num_experts_per_tok'")
        .expected("at most " + std::to_string(experts))
        .found(std::to_string(top_k));
}

void require_multiple(std::string_view whole_name, std::int64_t whole, std::string_view part_name,
                      std::int64_t part) {
  if (whole % part != 0)
    throw Error(ErrorKind::model, quote(whole_name) + " must be a multiple of " + quote(part_name))
        .found(std::to_string(whole) + " and " + std::to_string(part));
}

Activation activation_named(const std::string& name) {
  struct Row {
    std::string_view name;
    Activation function;
  };
  static constexpr std::array<Row, 6> kRows{{
      {"silu", [](const at::Tensor& x) { return at::silu(x); }},
      {"swish", [](const at::Tensor& x) { return at::silu(x); }},
      {"relu", [](const at::Tensor& x) { return at::relu(x); }},
      {"gelu", [](const at::Tensor& x) { return at::gelu(x); }},
      {"gelu_new", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
      {"gelu_pytorch_tanh", [](const at::Tensor& x) { return at::gelu(x, "tanh"); }},
  }};
  std::string known;
  for (const auto& row : kRows) {
    if (row.name == name) return row.function;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw Error(ErrorKind::model, "unknown activation")
      .expected(known)
      .found(quote(name));
}

}  // namespace graft
