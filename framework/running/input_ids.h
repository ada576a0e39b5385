#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "graft/model.h"

namespace graft {

/// Throws Error(usage) naming the first id that is not in the model's vocabulary.
void check_ids(const Model& model, std::span<const std::int64_t> ids);

/// `ids` as a batch of one, [1, T] int64, on the CPU. Throws as check_ids does.
at::Tensor input_ids(const Model& model, std::span<const std::int64_t> ids);

}  // namespace graft
