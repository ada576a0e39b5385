#pragma once

#include <cstdint>

#include "kernels/code_tables.h"

// 4-bit blocks as bitsandbytes writes them: the weight flattened row by row, element 2i in the high
// nibble of byte i, one absmax for each block of consecutive elements. Rules: those of its CPU
// back end, bit for bit. Any thread; nothing is allocated.

namespace graft::bnb {

/// Blocks [first, last) of the `count` elements `x`: bytes to `packed`, one float a block to
/// `absmax`; all three point at element 0. `blocksize` is even; the values are finite.
void quantize_blocks(const float* x, std::int64_t count, std::int64_t blocksize, QuantType type,
                     std::int64_t first, std::int64_t last, std::uint8_t* packed, float* absmax);

/// Double quantization of `count` values that were centred already, in blocks of 256: a code of
/// dynamic_map() each, one float a block to `nested_absmax`.
void quantize_nested(const float* centred, std::int64_t count, std::uint8_t* codes,
                     float* nested_absmax);

/// absmax again: map[code] * nested_absmax[block] + offset, product and sum rounded one by one.
void dequantize_nested(const std::uint8_t* codes, std::int64_t count, const float* map,
                       const float* nested_absmax, std::int64_t nested_blocksize, float offset,
                       float* absmax);

/// Elements [begin, begin + count) to `out`: table[code] * absmax[block].
using DequantizeBlocks = void (*)(const std::uint8_t* packed, const float* table,
                                  const float* absmax, std::int64_t blocksize, std::int64_t begin,
                                  std::int64_t count, float* out);

/// The oracle.
void dequantize_blocks_scalar(const std::uint8_t* packed, const float* table, const float* absmax,
                              std::int64_t blocksize, std::int64_t begin, std::int64_t count,
                              float* out);
#if defined(__x86_64__)
void dequantize_blocks_avx512(const std::uint8_t* packed, const float* table, const float* absmax,
                              std::int64_t blocksize, std::int64_t begin, std::int64_t count,
                              float* out);
#endif
/// The fastest one for this processor. All give the same bits.
DequantizeBlocks dequantize_blocks();

}  // namespace graft::bnb
