#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "graft/comparison.h"
#include "graft/error.h"
#include "plugins/one_torch_thread.h"
#include "running/each_on_pool.h"
#include "running/input_ids.h"

namespace graft {
namespace {

/// Rows whose log probabilities are in memory at once in a thread: a vocabulary has 100,000 columns
/// and more.
constexpr std::int64_t kRows = 16;

/// Logits [T, V] of a window, and the hidden states behind each decoder layer, in order.
struct Pass {
  at::Tensor logits;
  std::vector<at::Tensor> states;

  Pass() = default;
  Pass(Model& model, const at::Tensor& window) {
    Batch batch;
    batch.input_ids = window;
    batch.around_layer = [this](std::size_t, const at::Tensor& x, const auto& forward) {
      return states.emplace_back(forward(x));
    };
    logits = model.forward(batch)[0];
  }
};

/// What is known of each scored token.
struct Scores {
  explicit Scores(std::int64_t tokens)
      : kl(at::empty({tokens}, at::kDouble)),
        surprise_a(at::empty_like(kl)),
        surprise_b(at::empty_like(kl)),
        same(at::empty({tokens}, at::kBool)),
        finite(at::empty({tokens}, at::kBool)) {}
  at::Tensor kl, surprise_a, surprise_b, same, finite;

  /// Rows of logits [.., V] and the tokens that came next, from the token `first` on.
  void take(std::int64_t first, const at::Tensor& of_a, const at::Tensor& of_b,
            const at::Tensor& next) const {
    const auto n = next.size(0);
    const auto a = at::log_softmax(of_a.to(at::kCPU, at::kFloat), -1);
    const auto b = at::log_softmax(of_b.to(at::kCPU, at::kFloat), -1);
    const auto surprise = [&](const at::Tensor& chances) {
      return at::gather(chances, 1, next.unsqueeze(1)).squeeze(1).neg();
    };
    surprise_a.narrow(0, first, n).copy_(surprise(a));
    surprise_b.narrow(0, first, n).copy_(surprise(b));
    same.narrow(0, first, n).copy_(a.argmax(-1).eq(b.argmax(-1)));
    finite.narrow(0, first, n).copy_(a.isfinite().all(-1).logical_and(b.isfinite().all(-1)));
    // Rounding can bring equal distributions a little below zero.
    kl.narrow(0, first, n).copy_((a.exp() * (a - b)).sum(-1, false, at::kDouble).clamp_min(0));
  }
};

void require_comparable(const Model& reference, const Model& model) {
  if (&reference == &model)
    throw Error(ErrorKind::usage, "a model is compared with itself").hint("load it twice");
  for (const auto* one : {&reference, &model})
    if (one->output() != Model::Output::logits)
      throw Error(ErrorKind::usage,
                  "a " + one->class_name() + " has no logits that could be compared");
  const auto a = reference.text_config().get_int("vocab_size", 0);
  const auto b = model.text_config().get_int("vocab_size", 0);
  if (a != b)
    throw Error(ErrorKind::usage, "the models have different vocabularies")
        .expected(std::to_string(a) + " tokens, as the reference")
        .found(std::to_string(b))
        .hint("compare a model with the one it was made from");
}

Comparison summary(const Scores& scores, const at::Tensor& windows) {
  Comparison out;
  out.windows = windows.size(0);
  out.context = windows.size(1);
  out.tokens = scores.kl.size(0);
  out.not_finite = out.tokens - scores.finite.sum().item<std::int64_t>();
  if (out.not_finite > 0) {
    out.kl_mean = out.kl_p99 = out.kl_max = out.top1_agreement = out.perplexity_reference =
        out.perplexity = std::numeric_limits<double>::quiet_NaN();
    return out;
  }
  const auto tokens = static_cast<double>(out.tokens);
  const auto mean = [&](const at::Tensor& values) {
    const auto* first = values.const_data_ptr<double>();
    return std::accumulate(first, first + out.tokens, 0.0) / tokens;
  };
  out.kl_mean = mean(scores.kl);
  const auto sorted = std::get<0>(scores.kl.sort());
  out.kl_p99 = sorted[(out.tokens * 99 + 99) / 100 - 1].item<double>();
  out.kl_max = sorted[out.tokens - 1].item<double>();
  out.top1_agreement = static_cast<double>(scores.same.sum().item<std::int64_t>()) / tokens;
  out.perplexity_reference = std::exp(mean(scores.surprise_a));
  out.perplexity = std::exp(mean(scores.surprise_b));
  return out;
}

}  // namespace

at::Tensor evaluation_windows(std::span<const std::int64_t> ids, std::int64_t context) {
  if (context < 2) throw Error(ErrorKind::usage, "a context of at least 2 tokens is needed");
  if (ids.size() < 2)
    throw Error(ErrorKind::usage, "the text is too short to be scored")
        .expected("at least 2 tokens")
        .found(std::to_string(ids.size()));
  const auto all = static_cast<std::int64_t>(ids.size()), width = std::min(context, all);
  auto out = at::empty({all / width, width}, at::kLong);
  std::copy_n(ids.begin(), out.numel(), out.mutable_data_ptr<std::int64_t>());
  return out;
}

Comparison compare(const std::shared_ptr<Model>& reference, const std::shared_ptr<Model>& model,
                   const at::Tensor& given, const Context& progress) {
  require_comparable(*reference, *model);
  if (given.dim() != 2 || given.scalar_type() != at::kLong || given.size(0) == 0 ||
      given.size(1) < 2)
    throw Error(ErrorKind::usage, "the windows cannot be compared on")
        .expected("[W, T] int64, T at least 2");
  const c10::InferenceMode guard;
  const OneTorchThread one_thread;  // some of LibTorch's results depend on their number
  const auto windows = given.contiguous();
  require_in_vocabulary(*reference, {windows.const_data_ptr<std::int64_t>(),
                                     static_cast<std::size_t>(windows.numel())});
  const std::int64_t count = windows.size(0), scored = windows.size(1) - 1;
  const Scores scores(count * scored);
  std::vector<double> lost, whole;
  bool same_layers = true;
  for (std::int64_t w = 0; w < count; ++w) {
    progress.advance("compare", static_cast<std::uint64_t>(w), static_cast<std::uint64_t>(count));
    const auto window = windows.narrow(0, w, 1);
    Pass a, b;
    each_on_pool(2, [&](std::size_t side) {
      (side == 0 ? a : b) = Pass(side == 0 ? *reference : *model, window);
    });
    if (a.logits.sizes() != b.logits.sizes())
      throw Error(ErrorKind::usage, "the models give logits of different shapes")
          .expected(c10::str(a.logits.sizes()))
          .found(c10::str(b.logits.sizes()));
    each_on_pool((scored + kRows - 1) / kRows, [&](std::size_t chunk) {
      const auto first = static_cast<std::int64_t>(chunk) * kRows;
      const auto rows = std::min(kRows, scored - first);
      scores.take(w * scored + first, a.logits.narrow(0, first, rows),
                  b.logits.narrow(0, first, rows), windows[w].narrow(0, first + 1, rows));
    });
    const auto &of_a = a.states, &of_b = b.states;
    same_layers = same_layers && of_a.size() == reference->cache_layers() &&
                  std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(),
                             [](const auto& x, const auto& y) { return x.sizes() == y.sizes(); });
    if (!same_layers) continue;
    lost.resize(of_a.size());
    whole.resize(of_a.size());
    each_on_pool(static_cast<std::int64_t>(of_a.size()), [&](std::size_t i) {
      const auto x = of_a[i].to(at::kFloat), y = of_b[i].to(at::kFloat);
      lost[i] += (y - x).square().sum(at::kDouble).item<double>();
      whole[i] += x.square().sum(at::kDouble).item<double>();
    });
  }
  progress.advance("compare", static_cast<std::uint64_t>(count), static_cast<std::uint64_t>(count));
  Comparison out = summary(scores, windows);
  for (std::size_t i = 0; i < lost.size() && same_layers; ++i)
    out.layers.push_back(whole[i] > 0 ? lost[i] / whole[i] : lost[i]);
  return out;
}

Value to_value(const Comparison& comparison) {
  const auto number = [](double value) { return std::isfinite(value) ? Value(value) : Value(); };
  Value::Array layers;
  for (const double error : comparison.layers) layers.push_back(number(error));
  Value out;
  out.set("kl_mean", number(comparison.kl_mean));
  out.set("kl_p99", number(comparison.kl_p99));
  out.set("kl_max", number(comparison.kl_max));
  out.set("top1_agreement", number(comparison.top1_agreement));
  out.set("perplexity_reference", number(comparison.perplexity_reference));
  out.set("perplexity", number(comparison.perplexity));
  out.set("tokens", comparison.tokens);
  out.set("windows", comparison.windows);
  out.set("context", comparison.context);
  out.set("not_finite", comparison.not_finite);
  out.set("layers", std::move(layers));
  return out;
}

}  // namespace graft
