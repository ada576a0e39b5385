#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/model.h"
#include "graft/plan.h"
#include "graft/quantizer.h"

namespace graft {

class Ranks;

/// What a group of modules with one input costs and loses, by bits.
struct BitsChoices {
  std::vector<std::string> modules;
  struct Choice {
    std::uint64_t bytes = 0;
    /// What is lost, in any unit that adds up over groups; negative: not known.
    double error = -1;
  };
  std::map<int, Choice> by_bits;
};

/// The bits of each group, in their order, with which the errors add up to little and the bytes to
/// no more than `most`: from the fewest on, the step is taken that lowers the error most for each
/// byte, as long as one fits. Unknown errors count as the mean of the others'. Throws Error(usage),
/// with the least and the most that there are, when `most` is less than the fewest bits take.
GRAFT_API std::vector<int> choose_bits(std::vector<BitsChoices> groups, std::uint64_t most);

/// Chooses bits by what groups lose with each.
class BitsChooser {
 public:
  /// Plans of one model that differ in the bits of all modules; they and the context must outlive
  /// the chooser.
  BitsChooser(const std::map<int, Plan>& plans, const Context& context);

  /// Takes the error of the group's outputs for what it loses, tr(D H D^T) / tr(W H W^T) as of
  /// GroupReport, of every n-th run of 32 rows.
  void measure(const ModuleGroup& group);
  /// Takes, instead, what a group costs the model: with the fewest bits in it and all others dense,
  /// the mean KL divergence of the next token from that of `dense`, in nats; with other bits that
  /// times the ratio of the errors. Equal errors of outputs differ a hundred times in what they do
  /// to the logits. `dense` is a whole model with logits that was measured; its weights are changed
  /// and put back. Measured on 4 of the samples `ids` [B, T], 128 tokens of each, the groups shared
  /// among `ranks`, which may be null. Bits do not depend on the number of threads.
  void weigh(const std::shared_ptr<Model>& dense, const at::Tensor& ids, Ranks* ranks);
  /// Path and bits of every module that was measured, as choose_bits() has them: at most this many
  /// together, as Plan::bits_per_weight() counts them.
  std::vector<std::pair<std::string, int>> choose(double bits_per_weight);
  /// Throws Error(usage) unless the plan, which was made with those bits, has what was chosen.
  void check(const Plan& made) const;

 private:
  using Entries = std::map<std::string, const PlanEntry*>;  ///< by path

  std::map<int, Entries> entries_;  ///< by bits
  const Context& context_;
  std::vector<BitsChoices> groups_;
  /// The modules of each group with the fewest bits; none: no token reached it.
  std::vector<std::vector<std::shared_ptr<nn::Block>>> coarse_;
  Entries chosen_;  ///< as planned
};

}  // namespace graft
