#pragma once

#include <ATen/ops/stack.h>

#include "graft/nn/layers.h"
#include "graft/restructuring.h"

namespace org::example::special {

/// What takes the place of a CustomExpertModule: the same interface, [B, width] to
/// [experts, B, width], with a Linear for each expert, which methods can quantize.
class SequentialCustomExperts : public graft::nn::Unary {
 public:
  SequentialCustomExperts(std::int64_t count, std::int64_t width, const at::TensorOptions& options)
      : Unary("SequentialCustomExperts"), experts(*this, "experts") {
    for (std::int64_t i = 0; i < count; ++i)
      experts.append(std::make_shared<graft::nn::Linear>(width, width, /*bias=*/false, options));
  }

  at::Tensor forward(const at::Tensor& x) override {
    std::vector<at::Tensor> outputs;
    for (std::size_t i = 0; i < experts.size(); ++i) outputs.push_back(experts[i].forward(x));
    return at::stack(outputs);
  }

  graft::nn::SlotList<graft::nn::Unary> experts;
};

/// How it is built from the model's text config, and where its values are in the one tensor
/// "weights" [experts, width, width] of a CustomExpertModule.
inline graft::Restructuring separate_custom_experts() {
  graft::Restructuring how;
  how.build = [](const graft::ModuleSpec& spec, const graft::Value& text) {
    return std::make_shared<SequentialCustomExperts>(
        text.at("num_experts").as_int(), text.at("hidden_size").as_int(),
        at::TensorOptions(at::kMeta).dtype(spec.dtype));
  };
  how.map = [](const graft::ModuleSpec&, const graft::Value& text) {
    std::vector<graft::nn::TensorPart> parts;
    for (std::int64_t e = 0; e < text.at("num_experts").as_int(); ++e)
      parts.push_back({"weights", "experts." + std::to_string(e) + ".weight", {.index = e}});
    return parts;
  };
  return how;
}

}  // namespace org::example::special
