#include "models/routing.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>

namespace graft {

Routing route_by_probability(const at::Tensor& logits, std::int64_t k, bool normalize) {
  auto [weights, ids] = at::topk(at::softmax(logits.to(at::kFloat), -1), k, -1);
  if (normalize) weights = weights / weights.sum(-1, /*keepdim=*/true);
  return {ids, weights};
}

}  // namespace graft
