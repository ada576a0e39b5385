#pragma once

#include <cstdint>

#include "kernels/cpu_level.h"

// Loops that do nothing but what bounds a kernel, for benchmarks: reading memory and multiplying.

namespace graft::kernels {

enum class DotKind { int8, bf16, f32 };

/// Reads `bytes` (a multiple of 256) from memory aligned to 64 bytes; the result only keeps the
/// reads alive.
std::uint64_t read_memory(CpuLevel level, const std::uint8_t* memory, std::int64_t bytes);

/// Multiplies from registers for a while and returns how many multiply-adds it was. A level without
/// dots of bfloat16 multiplies in float32.
std::int64_t multiply_registers(CpuLevel level, DotKind kind, std::int64_t rounds);

#if defined(__x86_64__)
std::uint64_t read_memory_avx2(const std::uint8_t* memory, std::int64_t bytes);
std::int64_t multiply_int8_avx2(std::int64_t rounds);
std::int64_t multiply_f32_avx2(std::int64_t rounds);
std::int64_t multiply_int8_avx512(std::int64_t rounds);
std::int64_t multiply_f32_avx512(std::int64_t rounds);
std::int64_t multiply_bf16_avx512bf16(std::int64_t rounds);
#endif

}  // namespace graft::kernels
