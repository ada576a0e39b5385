#include "graft/nn/layers.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/where.h>
#include <ATen/TensorOperators.h>

#include "graft/nn/product.h"

namespace graft::nn {

torch::Tensor really_divided(const torch::Tensor& before, const torch::Tensor& after,
                             const torch::Tensor& asked) {
  return at::where(after == 0, asked, before / after);
}

Linear::Linear(std::int64_t in_features, std::int64_t out_features, bool has_bias,
               const at::TensorOptions& options)
    : Linear("Linear", in_features, out_features, has_bias, options) {}

Linear::Linear(std::string class_name, std::int64_t in_features, std::int64_t out_features,
               bool has_bias, const at::TensorOptions& options)
    : Unary(std::move(class_name)) {
  own("weight", weight, at::empty({out_features, in_features}, options));
  own("bias", bias, has_bias ? at::empty({out_features}, options) : at::Tensor());
}

Linear::~Linear() = default;

torch::Tensor Linear::forward(const torch::Tensor& x) { return linear(x, weight, bias); }

void Linear::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = weight.size(1);
  spec.out_features = weight.size(0);
  spec.bias = bias.defined();
  spec.dtype = weight.scalar_type();
}

Embedding::Embedding(std::int64_t count, std::int64_t width, const at::TensorOptions& options)
    : Unary("Embedding") {
  own("weight", weight, at::empty({count, width}, options));
}

Embedding::~Embedding() = default;

torch::Tensor Embedding::forward(const torch::Tensor& ids) {
  return at::embedding(weight, ids.to(weight.device()));  // ids may come from the CPU
}

RmsNorm::RmsNorm(std::string class_name, std::int64_t width, double eps,
                 const at::TensorOptions& options)
    : Unary(std::move(class_name)), eps_(eps) {
  own("weight", weight, at::empty({width}, options));
}

RmsNorm::~RmsNorm() = default;

torch::Tensor RmsNorm::forward(const torch::Tensor& x) {
  const auto wide = x.to(at::kFloat);
  const auto scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps_);
  return weight * (wide * scale).to(x.scalar_type());
}

torch::Tensor RmsNorm::divide_output(const torch::Tensor& divisor) {
  const auto before = weight.to(at::kFloat);
  set_tensor("weight", (before / divisor).to(weight.scalar_type()));
  return really_divided(before, weight.to(at::kFloat), divisor);
}

LayerNorm::LayerNorm(std::int64_t width, double eps, const at::TensorOptions& options)
    : Unary("LayerNorm"), eps_(eps) {
  own("weight", weight, at::empty({width}, options));
  own("bias", bias, at::empty({width}, options));
}

LayerNorm::~LayerNorm() = default;

torch::Tensor LayerNorm::forward(const torch::Tensor& x) {
  return at::layer_norm(x, {weight.size(0)}, weight, bias, eps_);
}

torch::Tensor LayerNorm::divide_output(const torch::Tensor& divisor) {
  const auto before = weight.to(at::kFloat);
  set_tensor("weight", (before / divisor).to(weight.scalar_type()));
  const auto divided = really_divided(before, weight.to(at::kFloat), divisor);
  set_tensor("bias", (bias.to(at::kFloat) / divided).to(bias.scalar_type()));
  return divided;
}

}  // namespace graft::nn
