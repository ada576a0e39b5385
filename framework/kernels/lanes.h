#pragma once

#include <cstdint>

// 16 float32 lanes as the compiler's own vectors, for rows_<level>.cpp: wider ones than the level's
// registers are split by the compiler. Functions over them are always inlined, so that no call
// passes one.

namespace graft::kernels {

using Lanes = float __attribute__((vector_size(64)));
using LaneBits = std::uint32_t __attribute__((vector_size(64)));
using LaneInts = std::int32_t __attribute__((vector_size(64)));

}  // namespace graft::kernels
