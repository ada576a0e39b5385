#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "graft/export.h"

namespace graft::nn {

/// A part of a tensor, as data: one index of the leading dimension, then some rows or columns of
/// what is left, then perhaps the transpose of that.
struct GRAFT_API Region {
  std::int64_t index = -1;   ///< of the leading dimension, which goes away; -1: all of them
  std::int64_t dim = 0;      ///< of what is left
  std::int64_t start = 0;    ///< along `dim`
  std::int64_t length = -1;  ///< along `dim`; -1: all of it
  std::int64_t step = 1;     ///< along `dim`: 2 takes every second
  bool transpose = false;    ///< of a matrix

  /// The part of `whole`, a view: writing to it writes to `whole`.
  at::Tensor of(const at::Tensor& whole) const;
  /// The shape of the part, or an empty one when a tensor of `shape` has no such part.
  std::vector<std::int64_t> shape_in(at::IntArrayRef shape) const;
};

/// One tensor of a module's replacement and where its values are in the module replaced. Works both
/// ways: a list of them says how to divide and how to join.
struct TensorPart {
  std::string from;  ///< tensor of the module replaced: "gate_up_proj"
  std::string to;    ///< tensor below the replacement: "3.gate_proj.weight"
  Region region;     ///< of `from`
};

}  // namespace graft::nn
