#pragma once

#include <ATen/core/Tensor.h>

namespace graft {

/// Which experts each row goes to and how much each counts.
struct Routing {
  at::Tensor ids;      ///< [T, k] int64
  at::Tensor weights;  ///< [T, k]
};

/// The k likeliest experts of each row of `logits` [T, E], weighted by their probabilities among
/// all experts (`normalize`: which then add up to 1), float32.
Routing route_by_probability(const at::Tensor& logits, std::int64_t k, bool normalize);

}  // namespace graft
