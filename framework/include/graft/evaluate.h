#pragma once

#include <cstdint>
#include <span>

#include "graft/context.h"
#include "graft/model.h"

namespace graft {

struct Perplexity {
  double value = 0;         ///< exp of the mean negative log likelihood
  std::int64_t tokens = 0;  ///< scored ones
  std::int64_t windows = 0;
};

/// Perplexity of `ids` in non-overlapping windows of `context` tokens, the first token of each not
/// scored, in float32 from the model's logits. A last window that is not full is left out, unless
/// it is the only one. Throws Error(usage) for fewer than two tokens, a context below 2, an
/// encoder; Error(interrupted) when `progress` says so.
GRAFT_API Perplexity perplexity(Model& model, std::span<const std::int64_t> ids,
                                std::int64_t context, const Context& progress = {});

/// Sentence embedding [H] float32: the last hidden states of all ids averaged, then scaled to
/// length 1. Throws Error(usage) for no ids or a model that ends in logits.
GRAFT_API at::Tensor mean_pooled_embedding(Model& model, std::span<const std::int64_t> ids);

}  // namespace graft
