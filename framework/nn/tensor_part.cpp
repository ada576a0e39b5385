#include "graft/nn/tensor_part.h"

namespace graft::nn {

at::Tensor Region::of(const at::Tensor& whole) const {
  auto part = index < 0 ? whole : whole.select(0, index);
  if (length >= 0) part = part.slice(dim, start, start + (length - 1) * step + 1, step);
  return transpose ? part.t() : part;
}

std::vector<std::int64_t> Region::shape_in(at::IntArrayRef whole) const {
  auto shape = whole.vec();
  if (index >= 0) {
    if (shape.empty() || index >= shape.front()) return {};
    shape.erase(shape.begin());
  }
  if (length >= 0) {
    if (dim >= static_cast<std::int64_t>(shape.size())) return {};
    auto& extent = shape[static_cast<std::size_t>(dim)];
    if (start + (length - 1) * step >= extent) return {};
    extent = length;
  }
  if (transpose) {
    if (shape.size() != 2) return {};
    std::swap(shape[0], shape[1]);
  }
  return shape;
}

}  // namespace graft::nn
