#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "graft/value.h"

namespace graft {

/// cos and sin of some positions, [T, rotary_dim].
using RopeTables = std::pair<at::Tensor, at::Tensor>;

/// Rotary position embedding over the first dimensions of a head. Scalings: default, linear,
/// dynamic, yarn, llama3, longrope; others are refused by name.
/// Formulas: transformers 5.23 modeling_rope_utils.
class Rope {
 public:
  /// Reads rope_parameters (Transformers 5), or rope_theta and rope_scaling (before).
  Rope(const Value& config, std::int64_t head_dim);
  /// The same with the parameters of one kind of layer, where a config has several.
  Rope(const Value& config, const Value& parameters, std::int64_t head_dim);

  /// Tables of the positions [start, start + count), in `dtype` (computed in float32).
  RopeTables tables(std::int64_t start, std::int64_t count, at::ScalarType dtype,
                    at::Device device) const;
  /// Whether a position has the same tables at every length.
  bool fixed() const { return kind_ == Kind::fixed; }

  /// x [B, heads, T, head_dim], halves rotated ("rotate_half" of Transformers); what lies beyond
  /// the tables' width passes.
  static at::Tensor apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
  /// The same for weights that keep the two numbers of a pair side by side.
  static at::Tensor apply_to_pairs(const at::Tensor& x, const at::Tensor& cos,
                                   const at::Tensor& sin);

 private:
  enum class Kind { fixed, dynamic, longrope };

  at::Tensor frequencies(std::int64_t length) const;

  Kind kind_ = Kind::fixed;
  double theta_ = 10000, factor_ = 1;
  double attention_factor_ = 1;      ///< on cos and sin
  std::int64_t dim_ = 0;             ///< dimensions that rotate
  std::int64_t trained_length_ = 0;  ///< dynamic, longrope: beyond it the frequencies change
  at::Tensor inverse_frequencies_;   ///< [dim / 2] float32
  at::Tensor long_frequencies_;      ///< longrope beyond the trained length
};

/// The lengths of text at which the tables of all positions change, for every layer of a config.
struct RopeLengths {
  bool fixed = true;  ///< they never do
  /// longrope: they do once, beyond this length; 0: no longrope.
  std::int64_t longrope = 0;
};
RopeLengths rope_lengths_of(const Value& config);

}  // namespace graft
