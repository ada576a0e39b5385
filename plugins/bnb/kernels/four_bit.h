#pragma once

#include <array>
#include <cstdint>

#include "kernels/activations.h"
#include "kernels/code_tables.h"
#include "kernels/cpu_level.h"

// 4-bit blocks as bitsandbytes writes them: the weight flattened row by row, element 2i in the high
// nibble of byte i, one absmax for each block of consecutive elements. Rules: those of its CPU
// back end, bit for bit. Any thread; nothing is allocated.

namespace graft::bnb {

/// Blocks [first, last) of the `count` elements `x`: bytes to `packed`, one float a block to
/// `absmax`; all three point at element 0. `blocksize` is even; the values are finite.
void quantize_blocks(const float* x, std::int64_t count, std::int64_t blocksize, QuantType type,
                     std::int64_t first, std::int64_t last, std::uint8_t* packed, float* absmax);

/// Codes by rising value, and the borders between them: a value takes the code whose number is that
/// of the borders strictly below it, so a tie goes down.
struct Thresholds {
  std::array<std::uint8_t, 16> codes;
  std::array<float, 15> borders;
};
const Thresholds& thresholds(QuantType type);

/// The same bytes from elements of `element`, by the fastest way of this processor. False when a
/// value is NaN or infinite; the output is of no use then.
bool quantize_elements(const void* x, kernels::ElementType element, std::int64_t count,
                       std::int64_t blocksize, QuantType type, std::int64_t first,
                       std::int64_t last, std::uint8_t* packed, float* absmax);
bool quantize_elements_at(kernels::CpuLevel level, const void* x, kernels::ElementType element,
                          std::int64_t count, std::int64_t blocksize, QuantType type,
                          std::int64_t first, std::int64_t last, std::uint8_t* packed,
                          float* absmax);

#if defined(__x86_64__)
/// Whole blocks only: `x` and `packed` point at the first of `blocks` blocks, `absmax` at its
/// place. The largest magnitude as the bits of a float32, for the caller to see what is not finite.
std::uint32_t quantize_blocks_avx512(const void* x, kernels::ElementType element,
                                     std::int64_t blocksize, const Thresholds& thresholds,
                                     std::int64_t blocks, std::uint8_t* packed, float* absmax);
std::uint32_t quantize_blocks_avx2(const void* x, kernels::ElementType element,
                                   std::int64_t blocksize, const Thresholds& thresholds,
                                   std::int64_t blocks, std::uint8_t* packed, float* absmax);
#endif

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
