#pragma once

#include <cstdint>

// AWQ codes in the GEMM layout to dense floats. Any thread; nothing is allocated.

namespace graft::awq {

/// Some outputs of a packed matrix, with what their codes mean.
struct Columns {
  const std::uint32_t* qweight;  ///< word of input 0 and the first of these outputs
  std::int64_t stride;           ///< words between inputs
  std::int64_t inputs;           ///< K
  std::int64_t count;            ///< outputs here, a multiple of 8
  std::int64_t group_size;
  const float* scales;   ///< [groups, count]
  const float* zeros;    ///< [groups, count]
  const float* offsets;  ///< [groups, count], added; nullptr: none
};

/// out[k * count + n] = (code - zero) * scale + offset: the transposed weight, so that codes are
/// read and values written in the order they lie.
using Dequantize = void (*)(const Columns& columns, float* out);
/// The oracle.
void dequantize_scalar(const Columns& columns, float* out);
#if defined(__x86_64__)
void dequantize_avx2(const Columns& columns, float* out);
#endif
/// The fastest one for this processor. All give the same bits.
Dequantize dequantize();

}  // namespace graft::awq
