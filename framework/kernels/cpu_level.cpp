#include "kernels/cpu_level.h"

#include <array>
#include <cstdlib>
#include <string>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "graft/error.h"

namespace graft::kernels {
namespace {

constexpr std::array kLevels{CpuLevel::scalar, CpuLevel::avx2, CpuLevel::avx512};

#if defined(__x86_64__)
/// Clang's __builtin_cpu_supports does not know it.
bool has_f16c() noexcept {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

std::string_view name_of(CpuLevel level) noexcept {
  switch (level) {
    case CpuLevel::scalar:
      return "scalar";
    case CpuLevel::avx2:
      return "avx2";
    case CpuLevel::avx512:
      return "avx512";
  }
  return "unknown";
}

CpuLevel detect_cpu_level() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (!avx2) return CpuLevel::scalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  return avx512 ? CpuLevel::avx512 : CpuLevel::avx2;
#else
  return CpuLevel::scalar;
#endif
}

bool cpu_has_bf16_dot() noexcept {
#if defined(__x86_64__)
  return detect_cpu_level() == CpuLevel::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

CpuLevel choose_cpu_level(std::string_view forced, CpuLevel offered) {
  if (forced.empty()) return offered;
  for (const CpuLevel level : kLevels) {
    if (forced != name_of(level)) continue;
    if (level <= offered) return level;
    throw Error(ErrorKind::usage, "this CPU lacks the level that GRAFT_CPU asks for")
        .expected("at most " + std::string(name_of(offered)))
        .found(quote(forced))
        .hint("unset GRAFT_CPU");
  }
  throw Error(ErrorKind::usage, "GRAFT_CPU names no level")
      .expected("scalar, avx2 or avx512")
      .found(quote(forced));
}

CpuLevel cpu_level() {
  static const CpuLevel level = [] {
    const char* forced = std::getenv("GRAFT_CPU");
    return choose_cpu_level(forced ? forced : "", detect_cpu_level());
  }();
  return level;
}

std::vector<CpuLevel> available_cpu_levels() {
  std::vector<CpuLevel> levels;
  for (const CpuLevel level : kLevels)
    if (level <= cpu_level()) levels.push_back(level);
  return levels;
}

}  // namespace graft::kernels
