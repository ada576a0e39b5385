#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "graft/model.h"

namespace graft {

/// `ids` as a batch of one, [1, T] int64, on the CPU. Throws Error(usage) naming the first id that
/// is not in the model's vocabulary.
at::Tensor input_ids(const Model& model, std::span<const std::int64_t> ids);

}  // namespace graft
