#include "models/gated_mlp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <vector>

#include "models/leaves.h"

namespace graft {
namespace {

/// The same projection of each of these modules; empty where one is no GatedMlp.
std::vector<nn::Unary::Segment> projections(std::span<const nn::Unary::Segment> segments,
                                            nn::Slot<nn::Unary> GatedMlp::*projection) {
  std::vector<nn::Unary::Segment> out;
  for (const auto& [module, rows] : segments) {
    auto* mlp = dynamic_cast<GatedMlp*>(module);
    if (!mlp) return {};
    out.push_back({(mlp->*projection).get().get(), rows});
  }
  return out;
}

/// In one go where the modules can, else one after the other.
at::Tensor together(const at::Tensor& x, std::span<const nn::Unary::Segment> segments) {
  if (auto all = segments.front().module->forward_segments(x, segments); all.defined()) return all;
  std::vector<at::Tensor> parts;
  std::int64_t first = 0;
  for (const auto& [module, rows] : segments) {
    parts.push_back(module->forward(x.narrow(0, first, rows)));
    first += rows;
  }
  return at::cat(parts);
}

}  // namespace

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

at::Tensor GatedMlp::forward_segments(const at::Tensor& x, std::span<const Segment> segments) {
  const auto gates = projections(segments, &GatedMlp::gate_proj);
  if (gates.empty()) return {};
  const auto gate = gates.front().module->forward_segments(x, gates);
  if (!gate.defined()) return {};
  const auto product = activation(gate) * together(x, projections(segments, &GatedMlp::up_proj));
  return together(product, projections(segments, &GatedMlp::down_proj));
}

}  // namespace graft
