#pragma once

#include <cstdint>

// LLM.int8 as bitsandbytes' CPU back end computes it. Any thread; nothing is allocated.

namespace graft::bnb {

/// One row of `count` values to rint(x * (1 / absmax * 127)); returns absmax. A row of zeros gives
/// zeros. `x` is finite.
float quantize_row(const float* x, std::int64_t count, std::int8_t* codes);

}  // namespace graft::bnb
