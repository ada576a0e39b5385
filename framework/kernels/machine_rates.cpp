#include "kernels/machine_rates.h"

#include <cstring>

namespace graft::kernels {
namespace {

std::uint64_t read_memory_scalar(const std::uint8_t* memory, std::int64_t bytes) {
  std::uint64_t sum = 0;
  for (std::int64_t i = 0; i < bytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, memory + i, 8);
    sum ^= word;
  }
  return sum;
}

std::int64_t multiply_scalar(std::int64_t rounds) {
  volatile float keep = 1.0F;
  float sums[4] = {keep, keep, keep, keep};
  const float factor = keep;
  for (std::int64_t i = 0; i < rounds; ++i)
    for (float& sum : sums) sum = sum * factor + factor;
  keep = sums[0] + sums[1] + sums[2] + sums[3];
  return rounds * 4;
}

}  // namespace

std::uint64_t read_memory(CpuLevel level, const std::uint8_t* memory, std::int64_t bytes) {
#if defined(__x86_64__)
  if (level >= CpuLevel::avx2) return read_memory_avx2(memory, bytes);
#else
  (void)level;
#endif
  return read_memory_scalar(memory, bytes);
}

std::int64_t multiply_registers(CpuLevel level, DotKind kind, std::int64_t rounds) {
#if defined(__x86_64__)
  if (level == CpuLevel::avx512) {
    if (kind == DotKind::int8) return multiply_int8_avx512(rounds);
    if (kind == DotKind::bf16 && cpu_has_bf16_dot()) return multiply_bf16_avx512bf16(rounds);
    return multiply_f32_avx512(rounds);
  }
  if (level == CpuLevel::avx2)
    return kind == DotKind::int8 ? multiply_int8_avx2(rounds) : multiply_f32_avx2(rounds);
#else
  (void)level;
  (void)kind;
#endif
  return multiply_scalar(rounds);
}

}  // namespace graft::kernels
