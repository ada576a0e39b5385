#include "quantized_special_linear.h"

#include <ATen/ATen.h>

#include <cmath>

#include "graft/error.h"
#include "graft/nn/product.h"

namespace org::example::special {

QuantizedSpecialLinear::QuantizedSpecialLinear(const graft::ModuleSpec& spec)
    : Unary("QuantizedSpecialLinear") {
  const auto meta = at::TensorOptions(at::kMeta);
  own("codes", codes, at::empty({spec.out_features, spec.in_features}, meta.dtype(at::kChar)));
  own("scales", scales, at::empty({spec.out_features}, meta.dtype(at::kFloat)));
}

void QuantizedSpecialLinear::quantize(const at::Tensor& weight) {
  if (!weight.isfinite().all().item<bool>())
    throw graft::Error(graft::ErrorKind::model, "the weight holds NaN or infinity")
        .at("tensor 'weight'");
  const auto dense = weight.to(at::kFloat);
  const auto steps = dense.abs().amax(1) / 127;
  const auto divisor = at::where(steps > 0, steps, at::ones_like(steps)).unsqueeze(1);
  set_tensor("codes", (dense / divisor).round().clamp(-127, 127).to(at::kChar));
  set_tensor("scales", steps);
}

at::Tensor QuantizedSpecialLinear::dequantize() const {
  return codes.to(at::kFloat) * scales.unsqueeze(1);
}

at::Tensor QuantizedSpecialLinear::forward(const at::Tensor& x) {
  const auto y = graft::nn::linear(x.to(at::kFloat), dequantize());
  return (y / std::sqrt(static_cast<double>(codes.size(1)))).to(x.scalar_type());
}

void QuantizedSpecialLinear::describe(graft::ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = codes.size(1);
  spec.out_features = codes.size(0);
}

}  // namespace org::example::special
