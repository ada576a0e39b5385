#pragma once

#include "graft/nn/unary.h"
#include "models/config_fields.h"

namespace graft {

/// down_proj(act(gate_proj(x)) * up_proj(x)): the feed-forward block of most decoders, and of their
/// experts.
struct GatedMlp : nn::Unary {
  /// `class_name` is the family's: "MistralMLP".
  GatedMlp(std::string class_name, std::int64_t hidden_size, std::int64_t intermediate_size,
           Activation activation, const at::TensorOptions& options, bool bias = false);

  at::Tensor forward(const at::Tensor& x) override;
  /// Where their gates can: then all projections run so, or one module after the other.
  at::Tensor forward_segments(const at::Tensor& x, std::span<const Segment> segments) override;

  Activation activation;
  nn::Slot<nn::Unary> gate_proj, up_proj, down_proj;
};

}  // namespace graft
