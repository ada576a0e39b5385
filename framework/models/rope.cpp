#include "models/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "graft/error.h"
#include "models/config_fields.h"

namespace graft {
namespace {

double positive(const Value& values, std::string_view field) {
  const double value = values.at(field).as_double();
  if (!(value > 0) || !std::isfinite(value))
    throw Error(ErrorKind::model, "the rope scaling is impossible")
        .at("config.json: field " + quote(field))
        .expected("a positive number")
        .found(std::to_string(value));
  return value;
}

/// theta^(-2i / dim), i = 0 .. dim / 2 - 1.
at::Tensor plain_frequencies(double theta, std::int64_t dim) {
  const auto exponents = at::arange(0, dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(dim);
  return 1.0 / at::pow(theta, exponents);
}

/// Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between.
at::Tensor llama3_scaled(const at::Tensor& frequencies, const Value& scaling, double original) {
  const double factor = positive(scaling, "factor");
  const double low = positive(scaling, "low_freq_factor");
  const double high = positive(scaling, "high_freq_factor");
  if (high < low)
    throw Error(ErrorKind::model, "the llama3 rope scaling is impossible")
        .expected("high_freq_factor >= low_freq_factor");
  const auto wavelength = 2 * std::numbers::pi / frequencies;
  const auto scaled = at::where(wavelength > original / low, frequencies / factor, frequencies);
  if (high == low) return scaled;
  const auto smooth = (original / wavelength - low) / (high - low);
  const auto ramp = (1 - smooth) * scaled / factor + smooth * scaled;
  const auto between = (wavelength >= original / high).logical_and(wavelength <= original / low);
  return at::where(between, ramp, scaled);
}

double yarn_magnitude(double factor, double weight) {
  return factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

/// YaRN: frequencies that turn often within the trained length are kept, those that turn less than
/// beta_slow times are divided by `factor`, a ramp between.
at::Tensor yarn_scaled(double theta, std::int64_t dim, double factor, double original,
                       const Value& scaling) {
  const auto dimension_of = [&](double rotations) {
    return static_cast<double>(dim) * std::log(original / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  double low = dimension_of(scaling.get_double("beta_fast", 32));
  double high = dimension_of(scaling.get_double("beta_slow", 1));
  if (scaling.get_bool("truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  const auto ramp = at::clamp((at::arange(dim / 2, at::kFloat) - low) / (high - low), 0.0, 1.0);
  const auto exponents = at::arange(0, dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(dim);
  const auto wave = at::pow(theta, exponents);
  const auto kept = 1 - ramp;
  return 1.0 / (factor * wave) * (1 - kept) + 1.0 / wave * kept;
}

/// A list of dim / 2 divisors of the frequencies.
at::Tensor divisors(const Value& scaling, std::string_view field, std::int64_t dim) {
  const auto& list = scaling.at(field).as_array();
  if (static_cast<std::int64_t>(list.size()) != dim / 2)
    throw Error(ErrorKind::model, "the longrope scaling has another length than a head")
        .at("config.json: field " + quote(field))
        .expected(std::to_string(dim / 2) + " numbers")
        .found(std::to_string(list.size()));
  std::vector<float> values;
  for (const auto& value : list) {
    const auto number = static_cast<float>(value.as_double());
    if (!(number > 0))
      throw Error(ErrorKind::model, "the longrope scaling is impossible")
          .at("config.json: field " + quote(field))
          .expected("positive numbers");
    values.push_back(number);
  }
  return at::tensor(values);
}

const Value& parameters_of(const Value& config) {
  static const Value kNone{Value::Object{}};
  if (const Value* found = config.find("rope_parameters")) return *found;
  if (const Value* found = config.find("rope_scaling")) return *found;
  return kNone;
}

std::string type_of(const Value& scaling) {
  return scaling.get_string("rope_type", scaling.get_string("type", "default"));
}

/// Transformers lets the field outside the parameters win where there is one.
std::int64_t original_length(const Value& config, const Value& scaling) {
  for (const Value* values : {&config, &scaling})
    if (values->find("original_max_position_embeddings"))
      return required_size(*values, "original_max_position_embeddings");
  return required_size(config, "max_position_embeddings");
}

}  // namespace

RopeLengths rope_lengths_of(const Value& config) {
  RopeLengths out;
  const auto look_at = [&](const Value& scaling) {
    const auto type = type_of(scaling);
    const bool is_long = type == "longrope" || type == "su";
    if (is_long) out.longrope = original_length(config, scaling);
    if (is_long || type == "dynamic") out.fixed = false;
  };
  const Value& parameters = parameters_of(config);
  if (!parameters.is_object()) return out;
  look_at(parameters);
  for (const auto& [kind, own] : parameters.as_object())  // of each kind of layer
    if (own.is_object()) look_at(own);
  return out;
}

Rope::Rope(const Value& config, std::int64_t head_dim)
    : Rope(config, parameters_of(config), head_dim) {}

Rope::Rope(const Value& config, const Value& scaling, std::int64_t head_dim) {
  theta_ = scaling.get_double("rope_theta", config.get_double("rope_theta", 10000.0));
  if (!(theta_ > 1) || !std::isfinite(theta_))
    throw Error(ErrorKind::model, "rope_theta must be above 1").found(std::to_string(theta_));
  const double part =
      scaling.get_double("partial_rotary_factor", config.get_double("partial_rotary_factor", 1.0));
  if (!(part > 0) || part > 1)
    throw Error(ErrorKind::model, "partial_rotary_factor must lie in (0, 1]")
        .found(std::to_string(part));
  dim_ = static_cast<std::int64_t>(static_cast<double>(head_dim) * part);
  if (dim_ < 2 || dim_ % 2 != 0)
    throw Error(ErrorKind::model, "the rotary part of a head must be even")
        .found(std::to_string(dim_));
  inverse_frequencies_ = plain_frequencies(theta_, dim_);

  const std::string type = type_of(scaling);
  const auto longest = [&] { return required_size(config, "max_position_embeddings"); };
  const auto original = [&] { return original_length(config, scaling); };
  const auto factor_or_ratio = [&] {
    if (scaling.find("factor")) return positive(scaling, "factor");
    return static_cast<double>(longest()) / static_cast<double>(original());
  };
  if (type == "linear") {
    inverse_frequencies_ = inverse_frequencies_ / positive(scaling, "factor");
  } else if (type == "llama3") {
    inverse_frequencies_ =
        llama3_scaled(inverse_frequencies_, scaling, static_cast<double>(original()));
  } else if (type == "dynamic") {
    kind_ = Kind::dynamic;
    if (dim_ == 2)
      throw Error(ErrorKind::model, "dynamic rope scaling needs more than 2 rotary dimensions");
    factor_ = positive(scaling, "factor");
    trained_length_ = longest();
  } else if (type == "yarn") {
    const double factor = factor_or_ratio();
    inverse_frequencies_ =
        yarn_scaled(theta_, dim_, factor, static_cast<double>(original()), scaling);
    const double numerator = scaling.get_double("mscale", 0);
    const double denominator = scaling.get_double("mscale_all_dim", 0);
    attention_factor_ =
        scaling.get_double("attention_factor", numerator != 0 && denominator != 0
                                                   ? yarn_magnitude(factor, numerator) /
                                                         yarn_magnitude(factor, denominator)
                                                   : yarn_magnitude(factor, 1));
  } else if (type == "longrope" || type == "su") {
    kind_ = Kind::longrope;
    trained_length_ = original();
    const double factor = factor_or_ratio();
    const double inferred =
        factor <= 1
            ? 1.0
            : std::sqrt(1 + std::log(factor) / std::log(static_cast<double>(trained_length_)));
    attention_factor_ = scaling.get_double("attention_factor", inferred);
    const auto plain = inverse_frequencies_;
    inverse_frequencies_ = plain / divisors(scaling, "short_factor", dim_);
    long_frequencies_ = plain / divisors(scaling, "long_factor", dim_);
  } else if (type != "default") {
    throw Error(ErrorKind::model, "unsupported rope scaling")
        .expected("default, linear, dynamic, yarn, llama3 or longrope")
        .found(quote(type));
  }
}

at::Tensor Rope::frequencies(std::int64_t length) const {
  if (length <= trained_length_ || kind_ == Kind::fixed) return inverse_frequencies_;
  if (kind_ == Kind::longrope) return long_frequencies_;
  const double ratio = static_cast<double>(length) / static_cast<double>(trained_length_);
  const double exponent = static_cast<double>(dim_) / static_cast<double>(dim_ - 2);
  return plain_frequencies(theta_ * std::pow(factor_ * ratio - (factor_ - 1), exponent), dim_);
}

RopeTables Rope::tables(std::int64_t start, std::int64_t count, at::ScalarType dtype,
                        at::Device device) const {
  const auto positions = at::arange(start, start + count, at::kLong).to(at::kFloat);
  const auto angles = positions.unsqueeze(1) * frequencies(start + count).unsqueeze(0);
  const auto both = at::cat({angles, angles}, 1);
  return {(both.cos() * attention_factor_).to(device, dtype),
          (both.sin() * attention_factor_).to(device, dtype)};
}

at::Tensor Rope::apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto dim = cos.size(-1), half = dim / 2;
  if (dim < x.size(-1)) {
    const auto rest = x.narrow(-1, dim, x.size(-1) - dim);
    return at::cat({apply(x.narrow(-1, 0, dim), cos, sin), rest}, -1);
  }
  const auto rotated = at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1);
  return x * cos + rotated * sin;
}

at::Tensor Rope::apply_to_pairs(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto half = cos.size(-1) / 2;
  const auto c = cos.narrow(-1, 0, half), s = sin.narrow(-1, 0, half);
  const auto even = x.slice(-1, 0, c10::nullopt, 2), odd = x.slice(-1, 1, c10::nullopt, 2);
  return at::stack({even * c - odd * s, odd * c + even * s}, -1).flatten(-2);
}

}  // namespace graft
