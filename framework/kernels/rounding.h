#pragma once

#include <cstdint>

#include "kernels/cpu_level.h"

// Rounds the rows of a weight to a grid so that the layer's output changes least: with d = w - q of a
// row, d H d^T is made small, H the second moment of the layer's input. H = F^T F with F lower
// triangular, so d H d^T = sum over k of F_kk^2 (d_k + sum over j < k of F_kj / F_kk d_j)^2, and each
// input in turn is rounded from w_k + sum F_kj / F_kk d_j: Babai's nearest plane, which is GPTQ
// (arXiv 2507.18553) without the inverse. Any thread; nothing is allocated.

namespace graft::kernels {

/// Rows that are rounded side by side, a strip.
inline constexpr std::int64_t kStripRows = 16;

/// What scales are rounded to before weights are rounded by them.
enum class ScaleType { float32, float16, bfloat16 };

/// The values that weights may take: scale * level, one scale for each row and group.
struct RoundingGrid {
  /// Rising levels, at most 16; nullptr: levels are code - zero for the codes 0..top.
  const float* levels = nullptr;
  int level_count = 0;
  int top = 15;
  bool own_zeros = false;  ///< a zero for each row and group; else (top + 1) / 2
  int least_zero = 0;      ///< of own zeros
  bool signed_scales = true;  ///< scales may be negative
  /// Scales are given and not searched.
  bool given_scales = false;
  ScaleType scale_type = ScaleType::float16;
};

/// One H for any number of strips; inputs are in the order they are rounded in.
struct RoundingProblem {
  std::int64_t inputs = 0;  ///< K
  std::int64_t groups = 0;
  const std::int32_t* group_begin = nullptr;  ///< [groups + 1]
  const float* factor = nullptr;  ///< [K, K], row k: F_kj / F_kk for j < k, the rest is not read; nullptr: H is
                                  ///< diagonal, `thorough` and `sweeps` have no meaning
  const float* cost = nullptr;    ///< [K] F_kk^2
  const float* hessian = nullptr;   ///< [K, K] symmetric; read by sweeps alone
  const float* diagonal = nullptr;  ///< [K] of it, positive
  int sweeps = 0;  ///< rounds of coordinate descent afterwards, each with its scales refitted
  /// Scales are tried with the feedback inside their group, which costs more.
  bool thorough = false;
};

/// Arrays [.., kStripRows], aligned to 64 bytes.
struct Strip {
  const float* weight;   ///< [K]
  float* deviation;      ///< [K] w - q
  std::uint8_t* codes;   ///< [K] of the uniform grid, else the index of the level
  float* scales;         ///< [groups]
  std::uint8_t* zeros;   ///< [groups] of the uniform grid
  float* scratch;        ///< [2 * largest group]
};

using RoundStrip = void (*)(const RoundingProblem&, const RoundingGrid&, const Strip&);

void round_strip_scalar(const RoundingProblem& problem, const RoundingGrid& grid,
                        const Strip& strip);
#if defined(__x86_64__)
void round_strip_avx2(const RoundingProblem& problem, const RoundingGrid& grid, const Strip& strip);
void round_strip_avx512(const RoundingProblem& problem, const RoundingGrid& grid,
                        const Strip& strip);
#endif
/// All levels give the same bits.
RoundStrip round_strip(CpuLevel level);

/// `x` rounded to the type and back.
float rounded_scale(float x, ScaleType type);

}  // namespace graft::kernels
