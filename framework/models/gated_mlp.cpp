#include "models/gated_mlp.h"

#include <ATen/TensorOperators.h>

#include "models/leaves.h"

namespace graft {

GatedMlp::GatedMlp(std::string class_name, std::int64_t hidden_size, std::int64_t intermediate_size,
                   Activation act, const at::TensorOptions& options, bool bias)
    : Unary(std::move(class_name)),
      activation(act),
      gate_proj(*this, "gate_proj", linear(hidden_size, intermediate_size, bias, options)),
      up_proj(*this, "up_proj", linear(hidden_size, intermediate_size, bias, options)),
      down_proj(*this, "down_proj", linear(intermediate_size, hidden_size, bias, options)) {}

at::Tensor GatedMlp::forward(const at::Tensor& x) {
  // A statement of its own, so that both halves are gone while calibration waits in down_proj.
  const auto product = activation(gate_proj->forward(x)) * up_proj->forward(x);
  return down_proj->forward(product);
}

}  // namespace graft
