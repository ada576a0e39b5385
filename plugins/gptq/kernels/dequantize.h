#pragma once

#include <cstdint>

// GPTQ codes to dense floats. Any thread; nothing is allocated.

namespace graft::gptq {

/// Some outputs of a packed matrix, with what their codes mean.
struct Columns {
  const std::uint32_t* qweight;  ///< word of input 0 and the first of these outputs
  std::int64_t stride;           ///< outputs of the whole matrix: words between rows of qweight
  std::int64_t inputs;           ///< K
  std::int64_t count;            ///< outputs here
  int bits;
  const std::int32_t* group;  ///< [inputs] group of each input, in range
  const float* scales;        ///< [groups, count]
  const float* zeros;         ///< [groups, count]
};

/// out[k * count + n] = scale * (code - zero): the transposed weight, so that codes are read and
/// values written in the order they lie.
using Dequantize = void (*)(const Columns& columns, float* out);
/// The oracle.
void dequantize_scalar(const Columns& columns, float* out);
#if defined(__x86_64__)
void dequantize_avx2(const Columns& columns, float* out);
#endif
/// The fastest one for this processor. All give the same bits.
Dequantize dequantize();

}  // namespace graft::gptq
