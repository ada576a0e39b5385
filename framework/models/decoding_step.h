#pragma once

#include <ATen/core/Tensor.h>

#include "graft/model.h"

namespace graft {

/// What every layer of one forward pass shares.
struct DecodingStep {
  explicit DecodingStep(const Batch& batch)
      : start(batch.cache ? batch.cache->length() : 0),
        padding(batch.attention_mask.defined() ? batch.attention_mask.to(at::kBool) : at::Tensor()),
        cache(batch.cache) {}

  /// Remembers the keys and values of these positions; afterwards both hold all so far.
  void remember(std::size_t layer, at::Tensor& k, at::Tensor& v) const {
    if (cache) std::tie(k, v) = cache->append(layer, k, v);
  }

  std::int64_t start;  ///< position of the first token
  at::Tensor padding;  ///< [B, S] bool, false where padded; undefined: none
  KvCache* cache;      ///< nullptr: none
};

}  // namespace graft
