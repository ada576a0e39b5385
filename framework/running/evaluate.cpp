#include "graft/evaluate.h"

#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "graft/comparison.h"
#include "graft/error.h"
#include "running/input_ids.h"

namespace graft {
namespace {

/// Rows whose log probabilities are in memory at once: a vocabulary has 100,000 columns and more.
constexpr std::int64_t kRows = 64;

/// Negative log likelihood of ids[1..] given what stands before each, summed.
double surprise(Model& model, const at::Tensor& ids) {
  Batch batch;
  batch.input_ids = ids;
  const auto logits = model.forward(batch)[0];
  const auto targets = ids[0].to(logits.device());
  double sum = 0;
  const std::int64_t scored = ids.size(1) - 1;
  for (std::int64_t row = 0; row < scored; row += kRows) {
    const std::int64_t count = std::min(kRows, scored - row);
    const auto chances = at::log_softmax(logits.narrow(0, row, count).to(at::kFloat), -1);
    const auto next = targets.narrow(0, row + 1, count).unsqueeze(1);
    sum -= at::gather(chances, 1, next).to(at::kDouble).sum().item<double>();
  }
  return sum;
}

}  // namespace

Perplexity perplexity(Model& model, std::span<const std::int64_t> ids, std::int64_t context,
                      const Context& progress) {
  if (model.output() != Model::Output::logits)
    throw Error(ErrorKind::usage, "a " + model.class_name() + " has no logits to score text with");
  const auto all = evaluation_windows(ids, context);
  require_in_vocabulary(model, ids);
  const c10::InferenceMode guard;
  Perplexity out;
  double sum = 0;
  const std::int64_t windows = all.size(0), width = all.size(1);
  for (; out.windows < windows; ++out.windows) {
    progress.advance("eval", static_cast<std::uint64_t>(out.windows),
                     static_cast<std::uint64_t>(windows));
    sum += surprise(model, all.narrow(0, out.windows, 1));
    out.tokens += width - 1;
  }
  progress.advance("eval", static_cast<std::uint64_t>(windows),
                   static_cast<std::uint64_t>(windows));
  if (!std::isfinite(sum))
    throw Error(ErrorKind::model, "the model's logits are not finite, so text cannot be scored")
        .hint("another --dtype may help: float16 overflows first; graft verify checks the weights");
  out.value = std::exp(sum / static_cast<double>(out.tokens));
  return out;
}

at::Tensor mean_pooled_embedding(Model& model, std::span<const std::int64_t> ids) {
  if (model.output() != Model::Output::last_hidden_state)
    throw Error(ErrorKind::usage, "a " + model.class_name() + " is no encoder")
        .hint("decoders write text: graft generate");
  if (ids.empty()) throw Error(ErrorKind::usage, "there is no token to embed");
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = input_ids(model, ids);
  const auto mean = model.forward(batch)[0].to(at::kCPU, at::kFloat).mean(0);
  return mean / mean.norm().clamp_min(1e-12);
}

}  // namespace graft
