#pragma once

#include <cstdint>

#include "kernels/panels.h"

// AWQ's GEMM layout as panels, and back: qweight [K, N / 8], N a multiple of 8. Any thread, panels
// in parallel; nothing is allocated.

namespace graft::awq {

/// Writes panels [first, last) of an int4 `shape` from qweight.
void pack(const kernels::PanelShape& shape, const std::uint32_t* qweight, std::int64_t first,
          std::int64_t last, std::uint8_t* codes);

/// Writes the words of panels [first, last), of panel `first` from `words` on, inputs `stride`
/// words apart.
void unpack(const kernels::PanelShape& shape, const std::uint8_t* codes, std::int64_t first,
            std::int64_t last, std::uint32_t* words, std::int64_t stride);

}  // namespace graft::awq
