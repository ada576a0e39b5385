#include <cmath>

#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/gated_mlp.h"
#include "models/model_table.h"
#include "models/rope.h"
#include "models/through_layers.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Olmo2Config : DecoderSizes {
  Rope rope;

  explicit Olmo2Config(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-5), rope(config, head_dim) {}

  std::shared_ptr<Unary> norm(std::int64_t width, const at::TensorOptions& o) const {
    return wide_rms_norm("Olmo2RMSNorm", width, rms_norm_eps, 0, o);
  }
};

struct Olmo2Attention : Block {
  Olmo2Attention(const Olmo2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Olmo2Attention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.attention_bias, o)),
        k_proj(*this, "k_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        v_proj(*this, "v_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, c.attention_bias, o)),
        q_norm(*this, "q_norm", c.norm(c.heads * c.head_dim, o)),
        k_norm(*this, "k_norm", c.norm(c.kv_heads * c.head_dim, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_norm->forward(q_proj->forward(x)), c_.heads, c_.head_dim);
    auto k = split_heads(k_norm->forward(k_proj->forward(x)), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    const auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  Olmo2Config c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj, q_norm, k_norm;
};

struct Olmo2DecoderLayer : Block {
  Olmo2DecoderLayer(const Olmo2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Olmo2DecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<Olmo2Attention>(c, layer, o)),
        mlp(*this, "mlp",
            std::make_shared<GatedMlp>("Olmo2MLP", c.hidden_size, c.intermediate_size, c.activation,
                                       o)),
        post_attention_layernorm(*this, "post_attention_layernorm", c.norm(c.hidden_size, o)),
        post_feedforward_layernorm(*this, "post_feedforward_layernorm", c.norm(c.hidden_size, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + post_attention_layernorm->forward(self_attn->forward(x, step, rope));
    return mixed + post_feedforward_layernorm->forward(mlp->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    // The norms come after the blocks: nothing that makes a block's input can absorb a scale.
    add_attention_groups(groups, path + "self_attn.", "", repeated_values_);
    add_mlp_groups(groups, path + "mlp.", "");
  }

  bool repeated_values_;
  Slot<Olmo2Attention> self_attn;
  Slot<Unary> mlp, post_attention_layernorm, post_feedforward_layernorm;
};

struct Olmo2Model : Block {
  Olmo2Model(const Olmo2Config& c, const at::TensorOptions& o)
      : Block("Olmo2Model"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", c.norm(c.hidden_size, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Olmo2DecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  at::Tensor hidden(const Batch& batch) {
    auto x = embed_tokens->forward(batch.input_ids);
    const DecodingStep step(batch);
    const auto rope = step.tables(rope_, x.scalar_type(), x.device());
    x = through_layers(batch, layers, std::move(x), step, rope);
    return norm->run(x);
  }

  Rope rope_;
  Slot<Unary> embed_tokens;
  SlotList<Olmo2DecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_olmo2(const Value& config, const at::TensorOptions& options) {
  const Olmo2Config c(config);
  return std::make_shared<CausalLm<Olmo2Model>>("Olmo2ForCausalLM", config,
                                                std::make_shared<Olmo2Model>(c, options),
                                                c.hidden_size, c.vocab_size, c.tied, options);
}

}  // namespace graft
