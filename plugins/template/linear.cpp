#include "linear.h"

#include <ATen/ATen.h>

#include "graft/error.h"
#include "graft/pool.h"
#include "kernels/rows.h"
#include "operators.h"

namespace org::example::rtn8 {

Rtn8Linear::Rtn8Linear(const graft::ModuleSpec& spec) : Unary("Rtn8Linear") {
  const auto meta = at::TensorOptions(at::kMeta);
  const std::int64_t n = spec.out_features, k = spec.in_features;
  own("codes", codes, at::empty({n, k}, meta.dtype(at::kChar)));
  own("scales", scales, at::empty({n}, meta.dtype(at::kFloat)));
  own("bias", bias, spec.bias ? at::empty({n}, meta.dtype(spec.dtype)) : at::Tensor());
}

void Rtn8Linear::quantize(const graft::Tensors& dense) {
  const auto weight = dense.at("weight").to(at::kFloat).contiguous();
  if (!weight.isfinite().all().item<bool>())
    throw graft::Error(graft::ErrorKind::model, "the weight holds NaN or infinity")
        .at("tensor 'weight'")
        .hint("leave the module dense with --skip");
  const std::int64_t n = weight.size(0), k = weight.size(1);
  auto rounded = at::empty({n, k}, at::kChar);
  auto steps = at::empty({n}, at::kFloat);
  const float* from = weight.const_data_ptr<float>();
  auto* to = rounded.mutable_data_ptr<std::int8_t>();
  auto* step = steps.mutable_data_ptr<float>();
  graft::for_each_chunk(graft::pool(), n, [&](std::int64_t row) {
    step[row] = quantize_row(from + row * k, k, to + row * k);
  });
  set_tensor("codes", rounded);
  set_tensor("scales", steps);
  if (const auto* given = dense.find("bias")) set_tensor("bias", *given);
}

at::Tensor Rtn8Linear::dequantize() const { return codes.to(at::kFloat) * scales.unsqueeze(1); }

at::Tensor Rtn8Linear::forward(const at::Tensor& x) {
  return linear(x, codes, scales, bias.defined() ? std::optional(bias) : std::nullopt);
}

void Rtn8Linear::describe(graft::ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = codes.size(1);
  spec.out_features = codes.size(0);
  spec.bias = bias.defined();
}

}  // namespace org::example::rtn8
