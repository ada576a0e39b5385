#include "checkpoint/gguf_rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "checkpoint/gguf_model.h"
#include "graft/error.h"

namespace graft {

Value gguf_rope_scaling(GgufFields& fields) {
  fields.ignore("rope.scaling.finetuned");
  const double old_factor = fields.positive("rope.scale_linear", 1.0);
  const double factor = fields.positive("rope.scaling.factor", old_factor);
  std::string type = fields.string("rope.scaling.type", factor == 1.0 ? "none" : "linear");
  if (type != "none" && type != "linear")
    throw Error(ErrorKind::model, "unsupported rope scaling")
        .at("'rope.scaling.type'")
        .expected("none or linear")
        .found(quote(type));
  if (type == "none" || factor == 1.0) return {};
  Value scaling;
  scaling.set("rope_type", "linear");
  scaling.set("factor", shortest_double(factor));
  return scaling;
}

Value llama3_rope_scaling(const std::vector<float>& factors, double theta) {
  // The parameters of all models with this scaling, but for the factor, which the longest
  // wavelength shows.
  constexpr double kLow = 1.0, kHigh = 4.0, kOriginal = 8192.0;
  const double factor = factors.empty() ? 1.0 : factors.back();
  const auto count = static_cast<double>(factors.size());
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / count);
    double expected = factor;
    if (wavelength < kOriginal / kHigh) {
      expected = 1.0;
    } else if (wavelength <= kOriginal / kLow) {
      const double smooth = (kOriginal / wavelength - kLow) / (kHigh - kLow);
      expected = 1.0 / ((1 - smooth) / factor + smooth);
    }
    if (!(std::abs(factors[i] - expected) <= 1e-5 * expected))
      throw Error(ErrorKind::model, "these rotary frequencies are no scaling of Llama 3")
          .at("tensor 'rope_freqs.weight'")
          .expected(std::to_string(expected) + " at position " + std::to_string(i))
          .found(std::to_string(factors[i]));
  }
  if (factor == 1.0) return {};
  Value scaling;
  scaling.set("rope_type", "llama3");
  scaling.set("factor", shortest_double(factor));
  scaling.set("low_freq_factor", kLow);
  scaling.set("high_freq_factor", kHigh);
  scaling.set("original_max_position_embeddings", static_cast<std::int64_t>(kOriginal));
  return scaling;
}

}  // namespace graft
