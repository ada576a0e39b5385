#include "kernels/cpu_level.h"

#include <doctest/doctest.h>

#include "graft/error.h"

using namespace graft;
using namespace graft::kernels;

TEST_CASE("without GRAFT_CPU the highest level of the CPU is chosen") {
  CHECK(choose_cpu_level("", CpuLevel::avx2) == CpuLevel::avx2);
  CHECK(choose_cpu_level("", CpuLevel::avx512) == CpuLevel::avx512);
}

TEST_CASE("GRAFT_CPU forces a level that the CPU has") {
  CHECK(choose_cpu_level("scalar", CpuLevel::avx512) == CpuLevel::scalar);
  CHECK(choose_cpu_level("avx2", CpuLevel::avx512) == CpuLevel::avx2);
  CHECK(choose_cpu_level("avx512", CpuLevel::avx512) == CpuLevel::avx512);
}

TEST_CASE("GRAFT_CPU is refused when the CPU lacks the level or no level has that name") {
  CHECK_THROWS_WITH_AS(choose_cpu_level("avx512", CpuLevel::avx2),
                       "this CPU lacks the level that GRAFT_CPU asks for: expected at most avx2, "
                       "found 'avx512'; unset GRAFT_CPU",
                       Error);
  CHECK_THROWS_WITH_AS(choose_cpu_level("AVX2", CpuLevel::avx512),
                       "GRAFT_CPU names no level: expected scalar, avx2 or avx512, found 'AVX2'",
                       Error);
}

TEST_CASE("the available levels start with scalar and end with the one that runs") {
  const auto levels = available_cpu_levels();
  REQUIRE(!levels.empty());
  CHECK(levels.front() == CpuLevel::scalar);
  CHECK(levels.back() == cpu_level());
}
