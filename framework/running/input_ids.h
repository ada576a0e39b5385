#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "graft/export.h"
#include "graft/model.h"

namespace graft {

/// Throws Error(usage) naming the first id that is not in the model's vocabulary.
GRAFT_API void require_in_vocabulary(const Model& model, std::span<const std::int64_t> ids);

/// `ids` as a batch of one, [1, T] int64, on the CPU. Throws as require_in_vocabulary.
at::Tensor input_ids(const Model& model, std::span<const std::int64_t> ids);

}  // namespace graft
