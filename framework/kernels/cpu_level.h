#pragma once

#include <string_view>
#include <vector>

namespace graft::kernels {

/// What the CPU kernels are compiled for; each includes the ones before it.
enum class CpuLevel : int {
  scalar = 0,  ///< the oracle: plain C++ for any x86-64
  avx2 = 1,    ///< AVX2, FMA, F16C: Haswell, Zen and later
  avx512 = 2,  ///< AVX-512 F, BW, DQ, VL, VBMI, VNNI: Ice Lake, Zen 4 and later
};

/// "scalar", "avx2", "avx512": the words of GRAFT_CPU.
std::string_view name_of(CpuLevel level) noexcept;

/// The highest level that this CPU and its operating system offer, whatever GRAFT_CPU says.
CpuLevel detect_cpu_level() noexcept;

/// AVX512_BF16 beside the level avx512: Cooper Lake, Sapphire Rapids, Zen 4.
bool cpu_has_bf16_dot() noexcept;

/// The level that `forced`, the text of GRAFT_CPU (empty: nothing forced), picks where `offered` is
/// the highest. Throws Error(usage) for an unknown word and for a level that the CPU lacks.
CpuLevel choose_cpu_level(std::string_view forced, CpuLevel offered);

/// The level that kernels run at: the environment variable GRAFT_CPU, read once, or the highest.
/// Throws as choose_cpu_level does. Any thread.
CpuLevel cpu_level();

/// scalar up to cpu_level(), for tests and benchmarks. Throws as choose_cpu_level does.
std::vector<CpuLevel> available_cpu_levels();

}  // namespace graft::kernels
