#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "graft/value.h"

namespace graft {

/// Rotary position embedding over the last dimension, halves rotated ("rotate_half" of
/// Transformers). Scalings: default, linear, llama3; others are refused by name.
class Rope {
 public:
  /// Reads rope_parameters (Transformers 5), or rope_theta and rope_scaling (before).
  Rope(const Value& config, std::int64_t head_dim);

  /// cos and sin [T, head_dim] of the positions [start, start + T), in `dtype` (computed in
  /// float32).
  std::pair<at::Tensor, at::Tensor> tables(std::int64_t start, std::int64_t count,
                                           at::ScalarType dtype, at::Device device) const;

  /// x [B, heads, T, head_dim] rotated.
  static at::Tensor apply(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

 private:
  at::Tensor inverse_frequencies_;  ///< [head_dim / 2] float32
};

}  // namespace graft
