#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graft/context.h"
#include "graft/model.h"
#include "graft/value.h"

namespace graft {

/// How far a model is from another one, the reference, over the tokens of some windows of text; the
/// first token of a window is not scored. With tokens that cannot be scored (`not_finite`) all
/// figures over tokens are NaN.
struct Comparison {
  std::int64_t windows = 0, context = 0;  ///< number and tokens of each
  std::int64_t tokens = 0;                ///< scored ones
  std::int64_t not_finite = 0;  ///< scored tokens where a model's logits are not finite
  double kl_mean = 0;           ///< KL(reference || model) in nats, over tokens
  double kl_p99 = 0;            ///< that 99 % of the tokens do not exceed
  double kl_max = 0;
  double top1_agreement = 0;  ///< share of tokens whose most likely next token is the same
  double perplexity_reference = 0, perplexity = 0;
  /// |h_model - h_reference|^2 / |h_reference|^2 of the hidden states behind each decoder layer.
  /// Empty: the models have not the same layers.
  std::vector<double> layers;
};

/// `ids` as windows [W, context] int64 that do not overlap. A last one that is not full is left out,
/// unless it is the only one. Throws Error(usage) for fewer than two tokens and a context below 2.
GRAFT_API at::Tensor evaluation_windows(std::span<const std::int64_t> ids, std::int64_t context);

/// Runs both models over `windows` [W, T] int64, side by side, in float32 from their logits;
/// logits of one window are in memory at once. While it runs, modules of both are wrapped to watch
/// hidden states. Bits do not depend on the number of threads. Throws Error(usage) for encoders,
/// other vocabularies, a token that is in none; Error(interrupted) when `progress` says so.
GRAFT_API Comparison compare(const std::shared_ptr<Model>& reference,
                             const std::shared_ptr<Model>& model, const at::Tensor& windows,
                             const Context& progress = {});

/// The fields under their names; null where one is NaN.
GRAFT_API Value to_value(const Comparison& comparison);

}  // namespace graft
