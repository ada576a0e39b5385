#pragma once

#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>

#include <cmath>

#include "graft/model.h"
#include "graft/nn/layers.h"

/// A model that graft does not have, with two classes of its own. What replaces them is no part of
/// it: `special/` is a plugin that serves both.
namespace my {

/// All experts on one input, their matrices in one tensor: [B, width] to [experts, B, width].
class CustomExpertModule : public graft::nn::Unary {
 public:
  CustomExpertModule(std::int64_t count, std::int64_t width, const at::TensorOptions& options)
      : Unary("CustomExpertModule") {
    own("weights", weights, at::empty({count, width, width}, options));
  }
  at::Tensor forward(const at::Tensor& x) override {
    return at::matmul(x, weights.transpose(1, 2));
  }
  void describe(graft::ModuleSpec& spec) const override {
    Unary::describe(spec);
    spec.dtype = weights.scalar_type();
  }

  at::Tensor weights;
};

/// y = x W^T / sqrt(K).
class SpecialLinear : public graft::nn::Linear {
 public:
  SpecialLinear(std::int64_t width, const at::TensorOptions& options)
      : Linear("SpecialLinear", width, width, /*bias=*/false, options) {}
  at::Tensor forward(const at::Tensor& x) override {
    return Linear::forward(x) / std::sqrt(static_cast<double>(weight.size(1)));
  }
};

class CustomModel : public graft::Model {
 public:
  CustomModel(const graft::Value& config, const at::TensorOptions& options)
      : Model("CustomModel", config),
        experts(*this, "experts",
                std::make_shared<CustomExpertModule>(config.at("num_experts").as_int(),
                                                     config.at("hidden_size").as_int(), options)),
        special(*this, "special",
                std::make_shared<SpecialLinear>(config.at("hidden_size").as_int(), options)) {}

  /// The model with random values.
  static std::shared_ptr<CustomModel> random() {
    const auto config =
        graft::parse_json(R"({"model_type": "custom", "num_experts": 3, "hidden_size": 64})");
    auto model = std::make_shared<CustomModel>(config, at::TensorOptions(at::kMeta));
    model->experts->set_tensor("weights", at::randn({3, 64, 64}));
    model->special->set_tensor("weight", at::randn({64, 64}));
    return model;
  }

  Output output() const override { return Output::last_hidden_state; }
  at::Tensor forward(const graft::Batch& batch) override { return forward(batch.input_ids); }
  at::Tensor forward(const at::Tensor& x) { return experts->forward(special->forward(x)); }
  std::size_t cache_layers() const override { return 0; }
  std::vector<graft::InputGroup> input_groups() const override { return {}; }

  graft::nn::Slot<graft::nn::Unary> experts, special;
};

}  // namespace my
