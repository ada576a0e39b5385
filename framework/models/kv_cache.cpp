#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "graft/error.h"
#include "graft/model.h"

namespace graft {

std::pair<at::Tensor, at::Tensor> KvCache::append(std::size_t layer, const at::Tensor& k,
                                                  const at::Tensor& v) {
  Layer& at_layer = layers_.at(layer);
  if (fixed_) {
    at_layer.k.index_copy_(2, fixed_->position, k);
    at_layer.v.index_copy_(2, fixed_->position, v);
    return {at_layer.k, at_layer.v};
  }
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

void KvCache::fix(std::int64_t capacity) {
  if (length() == 0)
    throw Error(ErrorKind::usage, "an empty cache cannot be fixed: the sizes of keys are not known")
        .hint("run a prompt through the model first");
  if (capacity <= length())
    throw Error(ErrorKind::usage, "a fixed cache has no room for one more token")
        .expected("a capacity above " + std::to_string(length()))
        .found(std::to_string(capacity));
  for (auto& layer : layers_)
    for (at::Tensor* kept : {&layer.k, &layer.v}) {
      // Zeros, because what is masked is still multiplied, and 0 times NaN is NaN.
      auto next = at::zeros({kept->size(0), kept->size(1), capacity, kept->size(3)},
                            kept->options());
      next.narrow(2, 0, layer.length).copy_(kept->narrow(2, 0, layer.length));
      *kept = std::move(next);
    }
  const auto options = layers_.back().k.options().dtype(at::kLong);
  fixed_ = Fixed{capacity, at::full({1}, length(), options), {}};
}

void KvCache::advance() {
  for (auto& layer : layers_) ++layer.length;
  fixed_->position.fill_(length());
}

}  // namespace graft
