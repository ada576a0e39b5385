#pragma once

#include "graft/nn/unary.h"

namespace graft::nn {

/// What a divide_output reports: before / after, channel by channel; `asked` where both are zero.
GRAFT_API torch::Tensor really_divided(const torch::Tensor& before, const torch::Tensor& after,
                                       const torch::Tensor& asked);

// The dense leaf modules. Constructed with TensorOptions: on meta they allocate nothing; elsewhere
// their tensors are uninitialised until filled.

/// y = x W^T + b. `weight` [out_features, in_features], `bias` [out_features] or absent.
class GRAFT_API Linear : public Unary {
 public:
  Linear(std::int64_t in_features, std::int64_t out_features, bool bias,
         const at::TensorOptions& options);
  /// One that Transformers derives a class of its own from: "Llama4Router".
  Linear(std::string class_name, std::int64_t in_features, std::int64_t out_features, bool bias,
         const at::TensorOptions& options);
  ~Linear() override;

  torch::Tensor forward(const torch::Tensor& x) override;
  void describe(ModuleSpec& spec) const override;

  torch::Tensor weight, bias;
};

/// Row look-up. `weight` [count, width]; input int64 of any shape.
class GRAFT_API Embedding : public Unary {
 public:
  Embedding(std::int64_t count, std::int64_t width, const at::TensorOptions& options);
  ~Embedding() override;

  torch::Tensor forward(const torch::Tensor& ids) override;

  torch::Tensor weight;
};

/// x / rms(x) * weight over the last dimension, the mean of squares in float32. `weight` [width].
class GRAFT_API RmsNorm : public Unary {
 public:
  /// `class_name` is the family's: "LlamaRMSNorm".
  RmsNorm(std::string class_name, std::int64_t width, double eps, const at::TensorOptions& options);
  ~RmsNorm() override;

  torch::Tensor forward(const torch::Tensor& x) override;
  torch::Tensor divide_output(const torch::Tensor& divisor) override;

  torch::Tensor weight;

 private:
  double eps_;
};

/// As torch.nn.LayerNorm with weight and bias [width].
class GRAFT_API LayerNorm : public Unary {
 public:
  LayerNorm(std::int64_t width, double eps, const at::TensorOptions& options);
  ~LayerNorm() override;

  torch::Tensor forward(const torch::Tensor& x) override;
  torch::Tensor divide_output(const torch::Tensor& divisor) override;

  torch::Tensor weight, bias;

 private:
  double eps_;
};

}  // namespace graft::nn
