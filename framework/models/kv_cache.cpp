#include <ATen/ops/empty.h>

#include <algorithm>

#include "graft/model.h"

namespace graft {

std::pair<at::Tensor, at::Tensor> KvCache::append(std::size_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  Layer& at_layer = layers_.at(layer);
  const auto count = k.size(2), length = at_layer.length + count;
  const auto capacity = at_layer.k.defined() ? at_layer.k.size(2) : 0;
  if (length > capacity) {
    const auto grown = std::max<std::int64_t>({length, 2 * capacity, 64});
    const auto grow = [&](at::Tensor& old, const at::Tensor& like) {
      auto next = at::empty({like.size(0), like.size(1), grown, like.size(3)}, like.options());
      if (old.defined())
        next.narrow(2, 0, at_layer.length).copy_(old.narrow(2, 0, at_layer.length));
      old = std::move(next);
    };
    grow(at_layer.k, k);
    grow(at_layer.v, v);
  }
  at_layer.k.narrow(2, at_layer.length, count).copy_(k);
  at_layer.v.narrow(2, at_layer.length, count).copy_(v);
  at_layer.length = length;
  return {at_layer.k.narrow(2, 0, length), at_layer.v.narrow(2, 0, length)};
}

std::int64_t KvCache::length() const { return layers_.empty() ? 0 : layers_.back().length; }

}  // namespace graft
