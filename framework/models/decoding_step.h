#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "models/attention.h"
#include "models/rope.h"
#include "models/through_layers.h"

namespace graft {

/// What every layer of one forward pass shares. With a fixed cache, what its functions give comes
/// from tensors alone that stay where they are.
struct DecodingStep {
  /// Throws Error(usage) for a fixed cache and several tokens or a mask.
  explicit DecodingStep(const Batch& batch);

  /// Positions of the tokens, [T] int64.
  at::Tensor positions(at::Device device) const;
  /// Tables of these positions, in `dtype`, which for one `rope` is always the same.
  RopeTables tables(const Rope& rope, at::ScalarType dtype, at::Device device) const;
  /// Remembers the keys and values of these positions; afterwards both hold all so far.
  void remember(std::size_t layer, at::Tensor& k, at::Tensor& v) const {
    if (cache) std::tie(k, v) = cache->append(layer, k, v);
  }
  /// Causal attention over what remember() gives.
  Attention attention(double scale) const;

  std::int64_t start;  ///< position of the first token, on the host
  std::int64_t count;  ///< tokens
  at::Tensor padding;  ///< [B, S] bool, false where padded; undefined: none
  KvCache* cache;      ///< nullptr: none

 private:
  KvCache::Fixed* fixed_;  ///< of the cache; nullptr: it grows
};

inline DecodingStep on_device(const DecodingStep& step, const at::Device& device) {
  DecodingStep out = step;
  out.padding = on_device(step.padding, device);
  return out;
}

}  // namespace graft
