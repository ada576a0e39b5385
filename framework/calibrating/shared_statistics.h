#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "calibrating/second_moment.h"
#include "graft/quantizer.h"

namespace graft {

class Ranks;

/// What the inputs of groups show over the batches of all ranks, of which each has some. Every rank
/// makes the same calls in the same order. Results have the same bits for any number of ranks.
class SharedStatistics {
 public:
  /// `ranks` may be null: all batches are here.
  SharedStatistics(Ranks* ranks, std::int64_t batches) : ranks_(ranks), batches_(batches) {}

  std::int64_t batches() const { return batches_; }
  /// The batches that this process runs.
  BatchRange held() const;
  /// Those of each process.
  std::vector<BatchRange> all_held() const;

  /// The first group that a batch of any rank waits for, none when all have ended. `first` is that
  /// of this rank, and `inputs` is what its batches bring to it, one each, undefined where one
  /// waits elsewhere. With `needed`, of() comes next: then ranks tell what it asks for with the
  /// same message.
  std::optional<std::size_t> meet(std::optional<std::size_t> first,
                                  const std::vector<at::Tensor>& inputs, bool needed);

  /// Of the group, to which the batches of this rank bring `inputs`.
  InputStatistics of(std::size_t group, const std::vector<at::Tensor>& inputs);

 private:
  /// What a rank says of its batches.
  struct Told {
    std::int64_t group = -1, rows = 0, k = 0;
    std::vector<bool> there;  ///< for each of its nodes, whether there is a sum
  };

  BatchRange held_by(int rank) const;
  void sum_up(std::size_t group, const std::vector<at::Tensor>& inputs);
  std::vector<Told> tell(const Told& own) const;

  Ranks* ranks_;
  std::int64_t batches_;
  std::optional<std::size_t> met_;  ///< the group that `told_` is of
  std::vector<Told> told_;
  Told own_;                      ///< with `sums_`
  std::vector<at::Tensor> sums_;  ///< of this rank's nodes, undefined where no batch came
};

}  // namespace graft
