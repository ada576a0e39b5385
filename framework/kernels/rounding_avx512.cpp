#include "kernels/rounding_strip.h"

namespace graft::kernels {

void round_strip_avx512(const RoundingProblem& problem, const RoundingGrid& grid, const Strip& strip) {
  round_strip_here(problem, grid, strip);
}

}  // namespace graft::kernels
