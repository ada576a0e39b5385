#include <ATen/ATen.h>

#include "graft/rounding.h"

namespace graft {

WeightNeighbours neighbours_of(const at::Tensor& codes, const at::Tensor& zeros,
                               const at::Tensor& scales, int most) {
  const auto step = scales.to(at::kFloat);
  WeightNeighbours out;
  out.weight = (codes.to(at::kFloat) - zeros.to(at::kFloat)) * step;
  out.higher = out.weight + step * codes.lt(most);
  out.lower = out.weight - step * codes.gt(0);
  return out;
}

}  // namespace graft
