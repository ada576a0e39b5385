#pragma once

#include <cstddef>
#include <optional>

#include "graft/dtype.h"
#include "graft/export.h"

namespace graft {

/// The index of the first element among `bytes` / size-of-dtype little-endian elements that is NaN
/// or infinity; nothing for types that have neither. Any alignment.
GRAFT_API std::optional<std::size_t> first_nonfinite(Dtype dtype, const void* data,
                                                     std::size_t bytes);

}  // namespace graft
