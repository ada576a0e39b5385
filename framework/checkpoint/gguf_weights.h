#pragma once

#include <cstddef>

#include "checkpoint/gguf_model.h"
#include "graft/dtype.h"
#include "graft/pool.h"

namespace graft {

/// Writes a tensor's values to `out` as `dtype` (BF16, F16 or F32), its rows in the order of the
/// folder. `blocks` holds the tensor's bytes. Throws Error(model) naming the first value that is
/// not finite, in the file or after rounding. The result does not depend on `threads`, which may be
/// nullptr.
void convert_gguf_weights(const GgufSource& source, const std::byte* blocks, Dtype dtype,
                          std::byte* out, const graft_pool* threads);

}  // namespace graft
