#pragma once

#include "models/config_fields.h"

namespace graft {

/// The fields that every decoder's config has, under the names most of them use.
struct DecoderSizes {
  std::int64_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
  double rms_norm_eps;
  bool attention_bias, tied;
  Activation activation;

  /// `default_eps` and `tied_by_default` are what the family's config class says when a field is
  /// absent.
  explicit DecoderSizes(const Value& config, double default_eps = 1e-6,
                        bool tied_by_default = false);
};

}  // namespace graft
