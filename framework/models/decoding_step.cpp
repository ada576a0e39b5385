#include "models/decoding_step.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/index_select.h>

#include "graft/error.h"

namespace graft {

DecodingStep::DecodingStep(const Batch& batch)
    : start(batch.cache ? batch.cache->length() : 0),
      count(batch.input_ids.size(1)),
      padding(batch.attention_mask.defined() ? batch.attention_mask.to(at::kBool) : at::Tensor()),
      cache(batch.cache),
      fixed_(batch.cache ? batch.cache->fixed() : nullptr) {
  if (fixed_ && (count != 1 || padding.defined()))
    throw Error(ErrorKind::usage, "a fixed cache takes one token at a time, without a mask")
        .found(std::to_string(count) + (padding.defined() ? " with a mask" : ""));
}

at::Tensor DecodingStep::positions(at::Device device) const {
  if (fixed_) return fixed_->position;
  return at::arange(start, start + count, at::TensorOptions(device).dtype(at::kLong));
}

RopeTables DecodingStep::tables(const Rope& rope, at::ScalarType dtype, at::Device device) const {
  if (!fixed_) return rope.tables(start, count, dtype, device);
  auto& [cos, sin] = fixed_->rope_tables[&rope];
  if (!cos.defined()) std::tie(cos, sin) = rope.tables(0, fixed_->capacity, dtype, device);
  return {at::index_select(cos, 0, fixed_->position), at::index_select(sin, 0, fixed_->position)};
}

Attention DecodingStep::attention(double scale) const {
  Attention how;
  how.scale = scale;
  how.padding = padding;
  if (fixed_) how.position = fixed_->position;
  return how;
}

}  // namespace graft
