#include "models/decoder_sizes.h"

#include <algorithm>

namespace graft {

DecoderSizes::DecoderSizes(const Value& config, double default_eps, bool tied_by_default)
    : vocab_size(required_size(config, "vocab_size")),
      hidden_size(required_size(config, "hidden_size")),
      intermediate_size(required_size(config, "intermediate_size")),
      layers(required_count(config, "num_hidden_layers")),
      heads(required_size(config, "num_attention_heads")),
      kv_heads(optional_size(config, "num_key_value_heads", heads)),
      head_dim(optional_size(config, "head_dim", std::max<std::int64_t>(1, hidden_size / heads))),
      rms_norm_eps(config.get_double("rms_norm_eps", default_eps)),
      attention_bias(config.get_bool("attention_bias", false)),
      tied(config.get_bool("tie_word_embeddings", tied_by_default)),
      activation(activation_named(
          config.get_string("hidden_act", config.get_string("hidden_activation", "silu")))) {
  require_multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads);
}

}  // namespace graft
