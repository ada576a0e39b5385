#include "models/leaves.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rsqrt.h>

#include "graft/nn/layers.h"

namespace graft {
namespace {

struct WideRmsNorm : nn::Unary {
  WideRmsNorm(std::string class_name, std::int64_t width, double eps, double offset,
              const at::TensorOptions& options)
      : Unary(std::move(class_name)), eps_(eps), offset_(offset) {
    own("weight", weight, at::empty({width}, options));
  }

  at::Tensor forward(const at::Tensor& x) override {
    const auto wide = x.to(at::kFloat);
    const auto scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps_);
    return (wide * scale * (weight.to(at::kFloat) + offset_)).to(x.scalar_type());
  }

  at::Tensor divide_output(const at::Tensor& divisor) override {
    const auto before = weight.to(at::kFloat) + offset_;
    set_tensor("weight", (before / divisor - offset_).to(weight.scalar_type()));
    return nn::really_divided(before, weight.to(at::kFloat) + offset_, divisor);
  }

  at::Tensor weight;

 private:
  double eps_, offset_;
};

}  // namespace

std::shared_ptr<nn::Unary> linear(std::int64_t in, std::int64_t out, bool bias,
                                  const at::TensorOptions& options) {
  return std::make_shared<nn::Linear>(in, out, bias, options);
}

std::shared_ptr<nn::Unary> linear(std::string class_name, std::int64_t in, std::int64_t out,
                                  bool bias, const at::TensorOptions& options) {
  return std::make_shared<nn::Linear>(std::move(class_name), in, out, bias, options);
}

std::shared_ptr<nn::Unary> embedding(std::int64_t count, std::int64_t width,
                                     const at::TensorOptions& options) {
  return std::make_shared<nn::Embedding>(count, width, options);
}

std::shared_ptr<nn::Unary> rms_norm(std::string class_name, std::int64_t width, double eps,
                                    const at::TensorOptions& options) {
  return std::make_shared<nn::RmsNorm>(std::move(class_name), width, eps, options);
}

std::shared_ptr<nn::Unary> wide_rms_norm(std::string class_name, std::int64_t width, double eps,
                                         double offset, const at::TensorOptions& options) {
  return std::make_shared<WideRmsNorm>(std::move(class_name), width, eps, offset, options);
}

std::shared_ptr<nn::Unary> layer_norm(std::int64_t width, double eps,
                                      const at::TensorOptions& options) {
  return std::make_shared<nn::LayerNorm>(width, eps, options);
}

}  // namespace graft
