#pragma once

#include <cstdint>

// LLM.int8 as bitsandbytes' CPU back end computes it. Any thread; nothing is allocated.

namespace graft::bnb {

/// One row of `count` values to rint(x * (1 / absmax * 127)); returns absmax. A row of zeros gives
/// zeros. `x` is finite.
float quantize_row(const float* x, std::int64_t count, std::int8_t* codes);

/// sum over k of a[k] * b[k]; |sum| < 2^31 for count < 2^17.
using DotInt8 = std::int32_t (*)(const std::int8_t* a, const std::int8_t* b, std::int64_t count);
std::int32_t dot_int8_scalar(const std::int8_t* a, const std::int8_t* b, std::int64_t count);
#if defined(__x86_64__)
std::int32_t dot_int8_avx2(const std::int8_t* a, const std::int8_t* b, std::int64_t count);
#endif
/// The fastest one for this processor. All give the same sum.
DotInt8 dot_int8();

}  // namespace graft::bnb
