#pragma once

#include "kernels/panel_tensors.h"
#include "quant_state.h"

// bitsandbytes' 4-bit blocks as panels of a 16-entry table, and back.

namespace graft::bnb {

/// Inputs that share an absmax in every row, or 0 when rows and blocks do not meet at steps of 8.
std::int64_t panel_group(std::int64_t columns, std::int64_t blocksize);

/// `bytes` uint8 [rows * columns / 2]; panel_group() is not 0.
kernels::PanelTensors pack_blocks(const at::Tensor& bytes, const QuantState& state,
                                  std::int64_t rows, std::int64_t columns);

/// The bytes again, of rows [first, first + count) with `first` a multiple of 16.
void unpack_rows(const kernels::PanelTensors& panels, std::int64_t first, std::int64_t count,
                 std::uint8_t* bytes);

/// absmax again: float32 [ceil(rows * columns / blocksize)].
at::Tensor unpack_absmax(const kernels::PanelTensors& panels, std::int64_t blocksize);

}  // namespace graft::bnb
