#pragma once

#include <cstdint>

// AWQ's 4-bit layouts (AutoAWQ's WQLinear_GEMM, _GEMV and _GEMVFast). `codes` is [inputs, outputs],
// one code a byte. Any thread; nothing is allocated.

namespace graft::awq {

/// Where GEMM puts output 8c + j of the word c: the eight fields are in the order 0 2 4 6 1 3 5 7.
inline constexpr int kGemmShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};

/// A row of `count` codes (a multiple of 8), also of zero points: count / 8 words.
void unpack_gemm(const std::uint32_t* words, std::int64_t count, std::uint8_t* codes);
void pack_gemm(const std::uint8_t* codes, std::int64_t count, std::uint32_t* words);

/// [outputs, inputs / 8] words, fields in plain order.
void unpack_gemv(const std::uint32_t* words, std::int64_t inputs, std::int64_t outputs,
                 std::uint8_t* codes);
void pack_gemv(const std::uint8_t* codes, std::int64_t inputs, std::int64_t outputs,
               std::uint32_t* words);

/// [outputs / 4, inputs] words of 16 bits, in blocks of 64 inputs.
void unpack_gemv_fast(const std::uint16_t* words, std::int64_t inputs, std::int64_t outputs,
                      std::uint8_t* codes);
void pack_gemv_fast(const std::uint8_t* codes, std::int64_t inputs, std::int64_t outputs,
                    std::uint16_t* words);

/// Words of a GEMV row of zero points; 8 times as many scales. 0: GEMV has no such group size.
std::int64_t gemv_zero_words(std::int64_t groups, std::int64_t group_size);

}  // namespace graft::awq
