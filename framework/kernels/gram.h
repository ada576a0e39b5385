#pragma once

#include <cstdint>

#include "kernels/cpu_level.h"

// x^T x, the second moments of a layer's input. Columns lie in panels that are 48 wide, so that one
// row of a panel is three AVX-512 registers, and the products of two panels are a tile that stays in
// the nearest cache. Any thread; nothing is allocated.

namespace graft::kernels {

inline constexpr std::int64_t kGramColumns = 48;

/// tile[i][j] += left[r][i] * right[r][j] for each row r in turn, each rounded once (fused). Panels
/// are [rows][48], the tile [48][48], all aligned to 64 bytes; the two panels may be one.
using GramTile = void (*)(const float* left, const float* right, std::int64_t rows, float* tile);

void gram_tile_scalar(const float* left, const float* right, std::int64_t rows, float* tile);
#if defined(__x86_64__)
void gram_tile_avx2(const float* left, const float* right, std::int64_t rows, float* tile);
void gram_tile_avx512(const float* left, const float* right, std::int64_t rows, float* tile);
#endif
/// All levels give the same bits.
GramTile gram_tile(CpuLevel level);

/// The same for values in bfloat16, two rows at a time: panels are [pairs][48], the earlier row of a
/// pair in the upper half of each word, which the processor's dot adds first. So the bits are those
/// of gram_tile, but for subnormal numbers, which the dot takes for zero.
using GramPairTile = void (*)(const std::uint32_t* left, const std::uint32_t* right,
                              std::int64_t pairs, float* tile);

#if defined(__x86_64__)
void gram_pair_tile_avx512bf16(const std::uint32_t* left, const std::uint32_t* right,
                               std::int64_t pairs, float* tile);
#endif
/// Null where it would not be faster.
GramPairTile gram_pair_tile(CpuLevel level);

}  // namespace graft::kernels
