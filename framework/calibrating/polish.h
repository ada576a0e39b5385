#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "calibrating/second_moment.h"
#include "graft/export.h"
#include "graft/quantizer.h"

namespace graft {

class Ranks;

/// A layer whose codes are to be chosen anew, all together.
struct LayerToPolish {
  std::vector<WeightNeighbours> weights;  ///< of its modules, with the codes they have
  std::vector<at::Tensor> dense;          ///< what they were rounded from, [N, K] float32
  /// What the layer makes of batch i of all, [.., H], with these weights in its modules;
  /// differentiable in them. Called from several threads at once.
  std::function<at::Tensor(std::int64_t i, const std::vector<at::Tensor>& weights)> run;
  std::vector<at::Tensor> wanted;  ///< what it should make of the batches that this process has
  std::int64_t batches = 0;        ///< of all processes
  std::vector<BatchRange> held;    ///< by each process
  Ranks* ranks = nullptr;          ///< null: this process has all batches
  std::uint64_t seed = 0;
  int steps = 0;
  std::function<void()> proceed;  ///< called before each step; may throw to end it all
};

struct Polished {
  /// Of each weight, [N, K] int8, as Quantizer::moved takes them; empty: the codes stay.
  std::vector<at::Tensor> moves;
  /// Mean over the tokens of held-out batches of |y - wanted|^2 / |wanted|^2, before and after.
  /// NaN: there are none.
  double error_before = std::numeric_limits<double>::quiet_NaN();
  double error_after = std::numeric_limits<double>::quiet_NaN();
  double changed = 0;  ///< share of the codes
  std::string left;    ///< why the codes stay; empty: they do not
};

/// Rounding by sign gradients (AutoRound, arXiv 2309.05516), from codes that are there: each code
/// may go to the next one, up or down. Where in between a weight stands is learned by steps of the
/// sign of the gradient of how far the layer's output is from the wanted one, of lengths that fall
/// from 1 / steps to nothing. Tokens with massive activations count as much as all others together,
/// and both relative to what they lose with the present codes: few weights make those activations,
/// all later tokens attend to them, and squares alone would see nothing else. A quarter of the
/// batches is held out; where either kind of token loses more on it than before, codes stay.
///
/// Every process makes the same call, and gets the same. Bits depend neither on the number of
/// threads nor on that of processes.
GRAFT_API Polished polish(LayerToPolish layer);

}  // namespace graft
