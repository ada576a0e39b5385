#pragma once

#include <memory>
#include <string>
#include <vector>

#include "graft/quantizer.h"

namespace graft {

/// The values that a weight may take: a scale for each row and group of inputs, times a level.
struct WeightGrid {
  int bits = 4;  ///< levels are code - zero, codes 0 .. 2^bits - 1
  bool own_zeros = false;  ///< a zero for each row and group; else 2^(bits - 1)
  int least_zero = 0;      ///< of own zeros
  std::vector<float> levels;  ///< rising, at most 16, in place of `bits`: those of NF4
  at::ScalarType scale_dtype = at::kHalf;  ///< what scales are stored as
  bool signed_scales = true;               ///< readers take negative scales
};

/// A weight on its grid. Groups are those of the inputs' own order, or of `group_of`.
struct RoundedWeight {
  at::Tensor codes;   ///< [N, K] uint8, or indices of levels
  at::Tensor scales;  ///< [N, groups] in the grid's scale_dtype
  at::Tensor zeros;   ///< [N, groups] uint8; undefined with levels
};

/// Of the weight (codes - zeros) * scales with codes 0 .. `most`, each [N, K] of any dtype.
GRAFT_API WeightNeighbours neighbours_of(const at::Tensor& codes, const at::Tensor& zeros,
                                         const at::Tensor& scales, int most);

/// In which order inputs are rounded: later ones make up for what earlier ones lost.
enum class RoundingOrder {
  natural,
  activation,  ///< falling diagonal of H; groups are formed in that order (act-order)
  grouped,     ///< groups as they are; whole groups, and inputs inside each, by falling diagonal
};

struct RoundingOptions {
  std::int64_t group_size = 128;  ///< inputs that share a scale; -1: all
  RoundingOrder order = RoundingOrder::grouped;
  /// Added to the diagonal of H, as a share of its mean. Raised tenfold, twice at most, until H can
  /// be factored; then float64 is tried.
  double damping = 0.05;
  /// Share by which everything off the diagonal of H is shrunk: calibration text is not the text a
  /// model will see.
  double shrinkage = 0.5;
  int sweeps = 2;       ///< of coordinate descent afterwards
  bool thorough = true;  ///< try scales with the feedback inside their group

  /// `thorough` and `sweeps` as the recipe has them.
  static GRAFT_API RoundingOptions of(Recipe recipe);
};

/// Rows that stand for all of `whole` [N, ..]: every n-th run of `run` rows, 256 rows or a few more.
/// All of them where there are not many, or where they do not come in such runs.
GRAFT_API at::Tensor sampled_rows(const at::Tensor& whole, std::int64_t run);

/// tr(M H M^T) of each matrix M [N, K] float32: what its outputs come to, squared, over inputs of the
/// second moment `h` [K, K] float32, symmetric. Runs on the pool; the same for any number of threads.
GRAFT_API std::vector<double> output_energies(const std::vector<at::Tensor>& matrices,
                                              const at::Tensor& h);

/// Rounds weights that share one input so that the outputs change least (kernels/rounding.h).
/// Immutable, thread-safe; its functions run on the pool and give the same bits for any number of
/// threads. Without statistics, or with ones that cannot be used (fallback() says why), every input
/// counts alike.
class GRAFT_API WeightRounder {
 public:
  /// `inputs` K. Throws Error(internal) when the statistics are of another size.
  WeightRounder(std::int64_t inputs, const InputStatistics& statistics,
                const RoundingOptions& options);
  ~WeightRounder();
  WeightRounder(WeightRounder&&) noexcept;

  /// What rounds the weights times `scales` [K] float32, positive, for inputs that are divided by
  /// them, in the order of this one and with its damping: nothing is factored again.
  WeightRounder scaled(const at::Tensor& scales) const;

  /// `weight` [N, K] of any float dtype. Throws Error(model) when it is not finite.
  RoundedWeight round(const at::Tensor& weight, const WeightGrid& grid) const;
  /// The same with scales [N, groups] that are given.
  RoundedWeight round(const at::Tensor& weight, const WeightGrid& grid,
                      const at::Tensor& scales) const;

  /// [K] int32, the group of each input; undefined: input / group_size.
  at::Tensor group_of() const;
  std::int64_t groups() const;
  /// "H is not positive definite", or empty.
  const std::string& fallback() const;

 private:
  struct Prepared;
  explicit WeightRounder(std::unique_ptr<Prepared> prepared);
  std::unique_ptr<Prepared> prepared_;
};

}  // namespace graft
