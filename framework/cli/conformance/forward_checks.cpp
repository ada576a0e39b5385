#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "cli/conformance/conformance.h"
#include "graft/error.h"

namespace graft::cli {
namespace {

std::string text(at::IntArrayRef shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

void some_shape(const Tried& tried) {
  for (const auto& subject : tried.subjects) {
    const auto specs = trial_specs(subject);
    if (std::none_of(specs.begin(), specs.end(), [&](const ModuleSpec& spec) {
          return filled_module(subject, spec, 10) != nullptr;
        }))
      broken(subject.name() + ": every shape that was tried is refused");
  }
}

void shapes(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 11);
    if (!module) return;
    for (const std::vector<std::int64_t>& outer :
         {std::vector<std::int64_t>{1}, {3}, {2, 3}, {17}, {0}, {2, 0}}) {
      auto sizes = outer;
      sizes.push_back(spec.in_features);
      const auto y = forward(*module, random_normal(sizes, 12));
      sizes.back() = spec.out_features;
      if (y.sizes() != at::IntArrayRef(sizes))
        broken("an input of " + text(outer) + " rows gave " + text(y.sizes()) + ", expected " +
               text(sizes));
    }
    // Rows that do not lie one behind the other.
    const auto wide = random_normal({5, 2 * spec.in_features}, 13);
    const auto part = wide.narrow(1, spec.in_features, spec.in_features);
    if (!same_bits(forward(*module, part), forward(*module, part.contiguous())))
      broken("a strided input gives another result than a contiguous one");
  });
}

void dtypes(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 14);
    if (!module) return;
    const auto x = random_normal({4, spec.in_features}, 15).to(at::kBFloat16).to(at::kFloat);
    const auto expected = forward(*module, x);
    const double largest = expected.abs().max().item<double>();
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto y = forward(*module, x.to(dtype));
      const std::string name = c10::toString(dtype);
      if (y.scalar_type() != dtype)
        broken(name + " in, " + std::string(c10::toString(y.scalar_type())) + " out");
      const double error = (y.to(at::kFloat) - expected).abs().max().item<double>();
      if (!(error <= 0.03 * largest + 1e-6))
        broken("in " + name + " the result is off by " + std::to_string(error) + " of " +
               std::to_string(largest));
    }
  });
}

/// Rows are independent, and what is no number does not become one.
void not_finite(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 16);
    if (!module) return;
    const auto x = random_normal({3, spec.in_features}, 17);
    const auto expected = forward(*module, x);
    auto poisoned = x.clone();
    poisoned[1][0] = std::numeric_limits<float>::quiet_NaN();
    const auto y = forward(*module, poisoned);
    for (const std::int64_t row : {0, 2})
      if (!y[row].isfinite().all().item<bool>())
        broken("NaN in one row of the input spreads to others");
    if (spec.out_features > 0 && y[1].isfinite().all().item<bool>())
      broken("NaN in a row of the input becomes numbers");
  });
}

void not_finite_weights(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    if (!subject.quantizer->supports(spec, *subject.config).yes) return;
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      GroupMember member = dense_member(subject, spec, 18);
      auto weight = member.dense.at("weight").clone();
      weight[0][0] = value;
      member.dense.set("weight", weight);
      std::shared_ptr<nn::Block> made;
      try {
        made = subject.quantizer->quantize({{member}, {}}, {}).modules.at(0);
      } catch (const Error&) {
        continue;  // refused, or it needs calibration
      }
      if (subject.quantizer->dequantize(*made)[0].isfinite().all().item<bool>())
        broken(std::string(value > 0 ? "infinity" : "NaN") + " in a weight becomes a number");
    }
  });
}

/// The results of the device are as near to the CPU's as golden models have to be, or to the
/// product with the dequantized weight, which is what shapes without a kernel may get there; 16-bit
/// ones as in dtypes().
void moved(const Tried& tried) {
  const auto type = c10::DeviceTypeName(tried.device.type(), /*lower_case=*/true);
  if (std::none_of(tried.subjects.begin(), tried.subjects.end(),
                   [&](const Subject& subject) { return subject.device == type; }))
    broken("it claims nothing on " + type);
  for_each_trial(tried, [&](const Subject& subject, const ModuleSpec& spec) {
    if (subject.device != type) return;
    const auto module = filled_module(subject, spec, 19);
    if (!module) return;
    Tensors before;
    for (const auto& [name, tensor] : subject.quantizer->save(*module, *subject.config))
      before.set(name, tensor.clone());
    const auto x = random_normal({5, spec.in_features}, 20).to(at::kBFloat16).to(at::kFloat);
    const auto expected = forward(*module, x);
    const auto* bias = before.find("bias");
    const auto plain = at::linear(x, subject.quantizer->dequantize(*module).to(at::kFloat),
                                  bias ? std::optional(bias->to(at::kFloat)) : std::nullopt);
    const double largest = expected.abs().max().item<double>();
    module->to(tried.device);
    const std::pair<at::ScalarType, double> cases[] = {
        {at::kFloat, 2e-4}, {at::kBFloat16, 0.03}, {at::kHalf, 0.03}};
    for (const auto& [dtype, tolerance] : cases) {
      const auto y = forward(*module, x.to(tried.device, dtype));
      if (y.device().type() != tried.device.type() || y.scalar_type() != dtype)
        broken("the result is " + y.toString() + " on " + y.device().str());
      const auto from = [&](const at::Tensor& other) {
        return (y.cpu().to(at::kFloat) - other).abs().max().item<double>();
      };
      const double error = std::min(from(expected), from(plain));
      if (!(error <= tolerance * largest + 1e-6))
        broken("in " + std::string(c10::toString(dtype)) + " on " + tried.device.str() +
               " the result is off by " + std::to_string(error) + " of " + std::to_string(largest));
    }
    for (const auto& [name, tensor] : subject.quantizer->save(*module, *subject.config))
      if (!before.find(name) || !same_bits(before.at(name), tensor))
        broken("on " + tried.device.str() + " '" + name + "' is saved differently");
    module->to(at::kCPU);
    if (!same_bits(forward(*module, x), expected))
      broken("back on the CPU it computes something else");
  });
}

}  // namespace

std::vector<Check> forward_checks() {
  return {
      {"modules of some shape can be made", some_shape},
      {"odd shapes run: 1 x 1, primes, no rows, strided rows", shapes},
      {"float32, bfloat16 and float16 come out as they went in, and agree", dtypes},
      {"NaN stays in its row, and stays NaN", not_finite},
      {"a weight that is not finite is refused or stays so", not_finite_weights},
      {"modules moved to the device and back compute and save the same", moved},
  };
}

}  // namespace graft::cli
