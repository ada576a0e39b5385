#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/export.h"
#include "graft/plan.h"
#include "graft/quantizer.h"

namespace graft {

/// What a group of modules with one input costs and loses, by bits.
struct BitsChoices {
  std::vector<std::string> modules;
  struct Choice {
    std::uint64_t bytes = 0;
    /// tr(D H D^T) / tr(W H W^T) as of GroupReport; negative: not known.
    double error = -1;
  };
  std::map<int, Choice> by_bits;
};

/// The bits of each group, in their order, with which the errors add up to little and the bytes to
/// no more than `most`: from the fewest on, the step is taken that lowers the error most for each
/// byte, as long as one fits. Unknown errors count as the mean of the others'. Throws Error(usage),
/// with the least and the most that there are, when `most` is less than the fewest bits take.
GRAFT_API std::vector<int> choose_bits(std::vector<BitsChoices> groups, std::uint64_t most);

/// Chooses bits by what groups lose with each, measured on every n-th run of 32 rows.
class BitsChooser {
 public:
  /// Plans of one model that differ in the bits of all modules; they and the context must outlive
  /// the chooser.
  BitsChooser(const std::map<int, Plan>& plans, const Context& context);

  void measure(const ModuleGroup& group);
  /// Path and bits of every module that was measured, as choose_bits() has them: at most this many
  /// together, as Plan::bits_per_weight() counts them.
  std::vector<std::pair<std::string, int>> choose(double bits_per_weight);
  /// Throws Error(usage) unless the plan, which was made with those bits, has what was chosen.
  void check(const Plan& made) const;

 private:
  std::map<int, std::map<std::string, const PlanEntry*>> entries_;  ///< bits -> path
  const Context& context_;
  std::vector<BitsChoices> groups_;
  std::map<std::string, const PlanEntry*> chosen_;  ///< path -> as planned
};

}  // namespace graft
