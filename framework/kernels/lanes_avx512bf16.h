#pragma once

#include <immintrin.h>

// Pairs of bfloat16 in registers; include it in files of that level alone.

namespace graft::kernels {
namespace {

inline __m512bh as_bf16(__m512i v) { return (__m512bh)v; }

/// The pair at `bytes` in all 16 lanes.
inline __m512bh broadcast(const void* bytes) {
  using AliasedInt = int __attribute__((may_alias));
  __m512i value = _mm512_set1_epi32(*static_cast<const AliasedInt*>(bytes));
#if defined(__clang__) && __clang_major__ < 19
  asm("" : "+v"(value));  // Clang 16 crashes when it sees through the cast
#endif
  return as_bf16(value);
}

}  // namespace
}  // namespace graft::kernels
