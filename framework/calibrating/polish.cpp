#include "calibrating/polish.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "graft/error.h"
#include "graft/ranks.h"
#include "plugins/one_torch_thread.h"
#include "running/each_on_pool.h"

namespace graft {
namespace {

/// Whether batch i is kept from learning.
bool is_held_out(std::int64_t i) { return i % 4 == 3; }

/// While it lives, LibTorch differentiates in this thread, whatever guards are around it.
class WithGradients {
  const c10::InferenceMode mode_{false};
  const c10::AutoGradMode grad_{true};
  const c10::impl::ForceDispatchKeyGuard keys_{c10::default_included_set,
                                               c10::default_excluded_set};
};

/// Where the weights of a module stand between the codes they have (0) and the next ones (1, -1).
struct Position {
  at::Tensor weight, up, down;  ///< up and down: what a code more adds, and one less takes away
  at::Tensor at;

  Position(const WeightNeighbours& grid, const at::Tensor& dense)
      : weight(grid.weight), up(grid.higher - grid.weight), down(grid.weight - grid.lower) {
    const auto off = dense - weight;
    const auto is_up = (off * (up + down)).gt(0);
    const auto step = at::where(is_up, up, down);
    // Rounding gives the codes they have; past a half it gives the next ones.
    at = at::where(step.ne(0), off / step, 0).clamp(-0.49, 0.49);
  }
  at::Tensor rounded() const {
    return at::where(at.gt(0.5), weight + up, at::where(at.lt(-0.5), weight - down, weight));
  }
  at::Tensor moves() const {
    const auto is_up = at.gt(0.5).logical_and(up.ne(0)),
               is_down = at.lt(-0.5).logical_and(down.ne(0));
    return is_up.to(at::kChar) - is_down.to(at::kChar);
  }
};

/// How much of a token's squared error counts, and of which kind it is. T is that of the longest
/// batch; what others lack counts nothing.
struct Tokens {
  at::Tensor massive;   ///< [batches, T] bool
  at::Tensor relative;  ///< [batches, T] float32: 1 / |wanted|^2
  at::Tensor weight;    ///< [batches, T] float32: of the loss
};

class Polisher {
 public:
  explicit Polisher(LayerToPolish layer)
      : layer_(std::move(layer)), mine_(layer_.held[layer_.ranks ? layer_.ranks->rank() : 0]) {
    for (std::int64_t i = 0; i < layer_.batches; ++i)
      if (!is_held_out(i)) learned_.push_back(i);
  }

  Polished run();

 private:
  /// Squared errors of tokens [batches, T] with these weights.
  at::Tensor errors(const std::vector<at::Tensor>& weights) const;
  void weigh_tokens(const at::Tensor& errors);
  void step(int number);
  void gather(const at::Tensor& rows, const std::vector<std::int64_t>& bounds) const {
    if (layer_.ranks) layer_.ranks->gather_rows(rows, bounds);
  }
  std::vector<std::int64_t> bounds_of_batches() const;
  const at::Tensor& wanted(std::int64_t batch) const {
    return layer_.wanted[static_cast<std::size_t>(batch - mine_.first)];
  }
  std::vector<at::Tensor> rounded() const;

  LayerToPolish layer_;
  const BatchRange mine_;
  std::vector<std::int64_t> learned_;
  std::vector<Position> positions_;
  Tokens tokens_;
  at::Tensor gradients_;  ///< [batches of a step, all weights] float32
  std::mt19937_64 random_{};
};

std::vector<std::int64_t> Polisher::bounds_of_batches() const {
  std::vector<std::int64_t> out{0};
  for (const auto& range : layer_.held) out.push_back(range.last);
  return out;
}

at::Tensor Polisher::errors(const std::vector<at::Tensor>& weights) const {
  const auto count = mine_.last - mine_.first;
  std::int64_t tokens = 0;
  for (const auto& y : layer_.wanted) tokens = std::max(tokens, y.numel() / y.size(-1));
  if (layer_.ranks) {  // one of them may have no batch
    auto all = at::zeros({layer_.ranks->size()}, at::kLong);
    all[layer_.ranks->rank()] = tokens;
    std::vector<std::int64_t> bounds(static_cast<std::size_t>(layer_.ranks->size()) + 1);
    for (std::size_t r = 0; r < bounds.size(); ++r) bounds[r] = static_cast<std::int64_t>(r);
    gather(all, bounds);
    tokens = all.max().item<std::int64_t>();
  }
  const auto out = at::zeros({layer_.batches, tokens}, at::kFloat);
  each_on_pool(count, [&](std::size_t i) {
    const auto batch = mine_.first + static_cast<std::int64_t>(i);
    const auto off = layer_.run(batch, weights).to(at::kFloat) - wanted(batch).to(at::kFloat);
    const auto lost = off.square().sum(-1).flatten();
    out[batch].narrow(0, 0, lost.size(0)).copy_(lost);
  });
  gather(out, bounds_of_batches());
  return out;
}

void Polisher::weigh_tokens(const at::Tensor& errors) {
  constexpr double kMassive = 4;  // times the median of |y|^2
  const auto energy = at::zeros_like(errors);
  for (auto i = mine_.first; i < mine_.last; ++i) {
    const auto of_tokens = wanted(i).to(at::kFloat).square().sum(-1).flatten();
    energy[i].narrow(0, 0, of_tokens.size(0)).copy_(of_tokens);
  }
  gather(energy, bounds_of_batches());
  if (const auto there = energy.masked_select(energy > 0); there.numel() > 0)
    tokens_.massive = energy > there.median() * kMassive;
  else
    tokens_.massive = at::zeros_like(energy, at::kBool);
  tokens_.relative = at::where(energy > 0, energy.reciprocal(), 0);
  auto learned = at::zeros({layer_.batches, 1}, at::kBool);
  for (const auto i : learned_) learned[i].fill_(true);
  tokens_.weight = at::zeros_like(errors);
  for (const auto& kind : {tokens_.massive, tokens_.massive.logical_not()}) {
    const auto lost =
        (errors * tokens_.relative * kind.logical_and(learned)).sum(at::kDouble).item<double>();
    if (lost > 0) tokens_.weight.add_(tokens_.relative * kind / lost);
  }
}

std::vector<at::Tensor> Polisher::rounded() const {
  std::vector<at::Tensor> out(positions_.size());
  each_on_pool(static_cast<std::int64_t>(out.size()), [&](std::size_t i) {
    const c10::InferenceMode normal_tensors(false);
    const c10::NoGradGuard no_gradients;
    out[i] = positions_[i].rounded();
  });
  return out;
}

void Polisher::step(int number) {
  const auto many = gradients_.size(0), all = static_cast<std::int64_t>(learned_.size());
  // One of each part of the text, so that processes have equal shares.
  std::vector<std::int64_t> batches;
  for (std::int64_t j = 0; j < many; ++j) {
    const auto first = all * j / many, last = all * (j + 1) / many;
    const auto chosen = first + static_cast<std::int64_t>(
                                    random_() % static_cast<std::uint64_t>(last - first));
    batches.push_back(learned_[static_cast<std::size_t>(chosen)]);
  }
  const auto weights = rounded();
  each_on_pool(many, [&](std::size_t row) {
    const auto batch = batches[row];
    if (batch < mine_.first || batch >= mine_.last) return;
    const WithGradients guard;
    std::vector<at::Tensor> leaves;
    for (const auto& weight : weights) leaves.push_back(weight.detach().requires_grad_(true));
    const auto off = layer_.run(batch, leaves).to(at::kFloat) - wanted(batch).to(at::kFloat);
    const auto lost = off.square().sum(-1).flatten();
    const auto loss = (lost * tokens_.weight[batch].narrow(0, 0, lost.size(0))).sum();
    const auto found = torch::autograd::grad({loss}, leaves, {}, std::nullopt,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    const c10::NoGradGuard no_gradients;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto length = leaves[i].numel();
      auto to = gradients_[static_cast<std::int64_t>(row)].narrow(0, first, length);
      if (found[i].defined())  // experts that no token was sent to have none
        to.copy_(found[i].flatten());
      else
        to.zero_();
      first += length;
    }
  });
  std::vector<std::int64_t> bounds;
  for (const auto end : bounds_of_batches())
    bounds.push_back(std::lower_bound(batches.begin(), batches.end(), end) - batches.begin());
  gather(gradients_, bounds);
  const double length = (1.0 - static_cast<double>(number) / layer_.steps) / layer_.steps;
  std::vector<std::int64_t> starts{0};
  for (const auto& position : positions_) starts.push_back(starts.back() + position.at.numel());
  each_on_pool(static_cast<std::int64_t>(positions_.size()), [&](std::size_t i) {
    const auto& position = positions_[i];
    const auto own = gradients_.narrow(1, starts[i], position.at.numel());
    const auto along = own.sum(0).view(position.at.sizes()) * (position.up + position.down);
    position.at.sub_(along.sign(), length);
  });
}

Polished Polisher::run() {
  constexpr std::int64_t kBatchesOfStep = 2;
  Polished out;
  const auto held_out = layer_.batches - static_cast<std::int64_t>(learned_.size());
  if (held_out == 0) {
    out.left = "fewer than four batches of text";
    return out;
  }
  const OneTorchThread one_thread;  // some of LibTorch's results depend on their number
  random_.seed(layer_.seed);
  std::vector<at::Tensor> before;
  std::int64_t codes = 0;
  for (std::size_t i = 0; i < layer_.weights.size(); ++i) {
    positions_.emplace_back(layer_.weights[i], layer_.dense[i]);
    before.push_back(layer_.weights[i].weight);
    codes += before.back().numel();
  }
  layer_.weights.clear();
  layer_.dense.clear();
  const auto at_first = errors(before);
  weigh_tokens(at_first);
  gradients_ = at::empty(
      {std::min(kBatchesOfStep, static_cast<std::int64_t>(learned_.size())), codes}, at::kFloat);
  for (int i = 0; i < layer_.steps; ++i) {
    layer_.proceed();
    step(i);
  }
  gradients_ = at::Tensor();
  const auto at_last = errors(rounded());

  auto kept = at::zeros({layer_.batches, 1}, at::kBool);
  for (std::int64_t i = 0; i < layer_.batches; ++i) kept[i].fill_(is_held_out(i));
  const auto lost = [&](const at::Tensor& errors, const at::Tensor& tokens) {
    return (errors * tokens_.relative * tokens).sum(at::kDouble).item<double>();
  };
  const auto scored = std::max<double>(
      1, tokens_.relative.gt(0).logical_and(kept).sum().item<double>());
  out.error_before = lost(at_first, kept) / scored;
  out.error_after = lost(at_last, kept) / scored;
  for (const auto& kind : {tokens_.massive, tokens_.massive.logical_not()}) {
    const auto tokens = kept.logical_and(kind);
    const double was = lost(at_first, tokens), is = lost(at_last, tokens);
    if (!(is <= was)) {
      out.left = std::isfinite(is) ? "worse on held-out text" : "not finite";
      return out;
    }
  }
  std::int64_t moved = 0;
  for (const auto& position : positions_) {
    out.moves.push_back(position.moves());
    moved += out.moves.back().count_nonzero().item<std::int64_t>();
  }
  out.changed = static_cast<double>(moved) / static_cast<double>(codes);
  return out;
}

}  // namespace

Polished polish(LayerToPolish layer) { return Polisher(std::move(layer)).run(); }

}  // namespace graft
