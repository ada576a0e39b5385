#pragma once

#include <immintrin.h>

#include "kernels/panels.h"

namespace graft::kernels {
namespace {

/// Sixteen scales from number `index` on. For files of the AVX-512 level, each with its own.
inline __m512 load_scales(const Scales& scales, std::int64_t index) {
  if (scales.type == ElementType::f32)
    return _mm512_loadu_ps(static_cast<const float*>(scales.data) + index);
  const __m256i halves = _mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const std::uint16_t*>(scales.data) + index));
  if (scales.type == ElementType::f16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

}  // namespace
}  // namespace graft::kernels
