#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graft/model.h"
#include "graft/nn/experts.h"
#include "graft/nn/unary.h"
#include "models/config_fields.h"

namespace graft {

/// Pairs of a row and one of its experts, sorted by expert; within an expert in the order of rows.
struct SortedPairs {
  struct Segment {
    std::int64_t expert, begin, count;
  };
  std::vector<Segment> segments;  ///< experts that have rows
  at::Tensor rows;                ///< [P] int64, the row of each pair
  at::Tensor places;              ///< [P] int64, the place of each pair in ids.flatten()
};

/// ids [T, k] int64. Throws Error(internal) for an id outside [0, experts).
SortedPairs sort_by_expert(const at::Tensor& ids, std::int64_t experts);

/// Each segment of `rows` [P, K] times its expert's matrix of `weights` [E, N, K] (any strides),
/// plus its row of `bias` [E, N] when defined: [P, N].
at::Tensor grouped_linear(const at::Tensor& rows, const SortedPairs& pairs,
                          const at::Tensor& weights, const at::Tensor& bias = {});

/// What the forward of fused and of separate experts shares: rows are gathered by expert once, run
/// in one pass, and put back.
class RoutedExperts : public nn::Experts {
 public:
  /// Where a row's weight counts: on what comes out of an expert, or on what goes in.
  enum class Weigh { outputs, inputs };

  RoutedExperts(std::string class_name, std::int64_t count, Weigh weigh)
      : Experts(std::move(class_name)), count_(count), weigh_(weigh) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& ids,
                     const at::Tensor& weights) override;
  std::int64_t size() const override { return count_; }

 protected:
  /// Rows [P, H] of `x` [T, H], sorted by expert and weighted where they are before -> [P, H].
  virtual at::Tensor run(const at::Tensor& rows, const SortedPairs& pairs,
                         const at::Tensor& x) = 0;

 private:
  std::int64_t count_;
  Weigh weigh_;
};

/// Sizes of the experts of one block.
struct ExpertSizes {
  std::int64_t count, hidden, intermediate;
};

/// act(gate) * up experts in two tensors: gate_up_proj [E, 2 I, H], gate first, and down_proj
/// [E, H, I]. As MixtralExperts and those of Qwen and DeepSeek in Transformers 5.
class FusedGatedExperts : public RoutedExperts {
 public:
  FusedGatedExperts(std::string class_name, const ExpertSizes& sizes, Activation activation,
                    const at::TensorOptions& options);

  std::vector<nn::TensorPart> parts() const override;
  void describe(ModuleSpec& spec) const override;

 protected:
  at::Tensor run(const at::Tensor& rows, const SortedPairs& pairs, const at::Tensor& x) override;

 private:
  ExpertSizes sizes_;
  Activation activation_;
  at::Tensor gate_up_proj_, down_proj_;
};

/// One module for each expert, called "0", "1", ...
class SequentialExperts : public RoutedExperts {
 public:
  using MakeExpert = std::function<std::shared_ptr<nn::Unary>()>;
  SequentialExperts(std::string class_name, std::int64_t count, Weigh weigh,
                    const MakeExpert& make);

  /// From now on each expert also runs on the rows that are not its own, behind its own and as they
  /// are, and what comes of them is dropped: for those who watch its inputs.
  void show_all_rows(bool all) { all_rows_ = all; }

 protected:
  at::Tensor run(const at::Tensor& rows, const SortedPairs& pairs, const at::Tensor& x) override;

 private:
  /// By Unary::forward_segments of the experts; undefined where they cannot.
  at::Tensor run_together(const at::Tensor& rows, const SortedPairs& pairs);

  std::vector<std::unique_ptr<nn::Slot<nn::Unary>>> experts_;
  bool all_rows_ = false;
};

/// The separate form of FusedGatedExperts: GatedMlps of the class `mlp_class`.
std::shared_ptr<nn::Block> sequential_gated_experts(std::string class_name, std::string mlp_class,
                                                    const ExpertSizes& sizes, Activation activation,
                                                    RoutedExperts::Weigh weigh,
                                                    const at::TensorOptions& options);

/// Adds the projections of separate experts at `path`; fused ones have none. Rows reach experts
/// through the router, which shares the norm before the block: that can absorb no scale.
void add_expert_groups(std::vector<InputGroup>& groups, const std::string& path,
                       const nn::Experts& experts);

}  // namespace graft
