#include "models/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <numbers>

#include "graft/error.h"
#include "models/config_fields.h"

namespace graft {
namespace {

/// Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between.
/// Formula: transformers modeling_rope_utils, _compute_llama3_parameters.
at::Tensor llama3_scaled(const at::Tensor& frequencies, const Value& scaling) {
  const double factor = scaling.at("factor").as_double();
  const double low = scaling.at("low_freq_factor").as_double();
  const double high = scaling.at("high_freq_factor").as_double();
  const double original =
      static_cast<double>(required_size(scaling, "original_max_position_embeddings"));
  if (!(factor > 0) || !(high > low) || !(low > 0))
    throw Error(ErrorKind::model, "the llama3 rope scaling is impossible")
        .expected("factor > 0 and high_freq_factor > low_freq_factor > 0");
  const auto wavelength = 2 * std::numbers::pi / frequencies;
  const auto scaled = at::where(wavelength > original / low, frequencies / factor, frequencies);
  const auto smooth = (original / wavelength - low) / (high - low);
  const auto ramp = (1 - smooth) * scaled / factor + smooth * scaled;
  const auto between = (wavelength >= original / high).logical_and(wavelength <= original / low);
  return at::where(between, ramp, scaled);
}

}  // namespace

Rope::Rope(const Value& config, std::int64_t head_dim) {
  require_multiple("head_dim", head_dim, "2", 2);
  const Value* parameters = config.find("rope_parameters");
  if (!parameters) parameters = config.find("rope_scaling");
  static const Value kNone{Value::Object{}};
  const Value& scaling = parameters ? *parameters : kNone;
  const double theta = scaling.get_double("rope_theta", config.get_double("rope_theta", 10000.0));
  if (!(theta > 0))
    throw Error(ErrorKind::model, "rope_theta must be positive").found(std::to_string(theta));

  const auto exponents =
      at::arange(0, head_dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(head_dim);
  inverse_frequencies_ = 1.0 / at::pow(theta, exponents);

  const std::string type = scaling.get_string("rope_type", scaling.get_string("type", "default"));
  if (type == "llama3") {
    inverse_frequencies_ = llama3_scaled(inverse_frequencies_, scaling);
  } else if (type == "linear") {
    inverse_frequencies_ = inverse_frequencies_ / scaling.at("factor").as_double();
  } else if (type != "default") {
    throw Error(ErrorKind::model, "unsupported rope scaling")
        .at("config.json")
        .expected("default, linear or llama3")
        .found(quote(type));
  }
}

std::pair<at::Tensor, at::Tensor> Rope::tables(std::int64_t start, std::int64_t count,
                                               at::ScalarType dtype, at::Device device) const {
  const auto positions = at::arange(start, start + count, at::kLong).to(at::kFloat);
  const auto angles = positions.unsqueeze(1) * inverse_frequencies_.unsqueeze(0);
  const auto both = at::cat({angles, angles}, 1);
  return {both.cos().to(device, dtype), both.sin().to(device, dtype)};
}

at::Tensor Rope::apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto half = x.size(-1) / 2;
  const auto rotated = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos + rotated * sin;
}

}  // namespace graft
