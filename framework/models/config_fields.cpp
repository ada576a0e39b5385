#include "models/config_fields.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <array>
#include <limits>

#include "graft/error.h"

namespace graft {
namespace {

std::int64_t checked(std::string_view field, std::int64_t value) {
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max())
    throw Error(ErrorKind::model, "the field " + quote(field) + " is out of range")
        .expected("1 to 2147483647")
        .found(std::to_string(value));
  return value;
}

}  // namespace

std::int64_t required_size(const Value& config, std::string_view field) {
  config.at(field);
  return checked(field, config.get_int(field, 0));
}

std::int64_t optional_size(const Value& config, std::string_view field, std::int64_t otherwise) {
  return checked(field, config.get_int(field, otherwise));
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
      .at("config.json")
      .expected(known)
      .found(quote(name));
}

}  // namespace graft
