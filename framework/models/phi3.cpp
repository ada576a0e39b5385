#include <ATen/TensorOperators.h>

#include <cmath>

#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/model_table.h"
#include "models/rope.h"
#include "models/through_layers.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Phi3Config : DecoderSizes {
  std::int64_t window;
  Rope rope;

  explicit Phi3Config(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-5),
        window(size_or_none(config, "sliding_window")),
        rope(config, head_dim) {}
};

struct Phi3Attention : Block {
  Phi3Attention(const Phi3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Phi3Attention"),
        c_(c),
        layer_(layer),
        qkv_proj(*this, "qkv_proj",
                 linear(c.hidden_size, (c.heads + 2 * c.kv_heads) * c.head_dim, false, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, false, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto all = split_heads(qkv_proj->forward(x), c_.heads + 2 * c_.kv_heads, c_.head_dim);
    auto q = all.narrow(1, 0, c_.heads);
    auto k = all.narrow(1, c_.heads, c_.kv_heads);
    auto v = all.narrow(1, c_.heads + c_.kv_heads, c_.kv_heads);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    how.window = c_.window;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  Phi3Config c_;
  std::size_t layer_;
  Slot<Unary> qkv_proj, o_proj;
};

struct Phi3MLP : Unary {
  Phi3MLP(const Phi3Config& c, const at::TensorOptions& o)
      : Unary("Phi3MLP"),
        activation_(c.activation),
        gate_up_proj(*this, "gate_up_proj",
                     linear(c.hidden_size, 2 * c.intermediate_size, false, o)),
        down_proj(*this, "down_proj", linear(c.intermediate_size, c.hidden_size, false, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    auto both = gate_up_proj->forward(x);
    const auto half = both.size(-1) / 2;
    const auto product = both.narrow(-1, half, half) * activation_(both.narrow(-1, 0, half));
    both.reset();
    return down_proj->forward(product);
  }

  Activation activation_;
  Slot<Unary> gate_up_proj, down_proj;
};

struct Phi3DecoderLayer : Block {
  Phi3DecoderLayer(const Phi3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Phi3DecoderLayer"),
        self_attn(*this, "self_attn", std::make_shared<Phi3Attention>(c, layer, o)),
        mlp(*this, "mlp", std::make_shared<Phi3MLP>(c, o)),
        input_layernorm(*this, "input_layernorm",
                        rms_norm("Phi3RMSNorm", c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 rms_norm("Phi3RMSNorm", c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    // Values and up come out of matrices that hold more: those absorb no scale.
    groups.push_back({{path + "self_attn.qkv_proj"}, path + "input_layernorm"});
    groups.push_back({{path + "self_attn.o_proj"}, ""});
    groups.push_back({{path + "mlp.gate_up_proj"}, path + "post_attention_layernorm"});
    groups.push_back({{path + "mlp.down_proj"}, ""});
  }

  Slot<Phi3Attention> self_attn;
  Slot<Unary> mlp, input_layernorm, post_attention_layernorm;
};

struct Phi3Model : Block {
  Phi3Model(const Phi3Config& c, const at::TensorOptions& o)
      : Block("Phi3Model"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", rms_norm("Phi3RMSNorm", c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Phi3DecoderLayer>(c, static_cast<std::size_t>(i), o));
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
  SlotList<Phi3DecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_phi3(const Value& config, const at::TensorOptions& options) {
  const Phi3Config c(config);
  return std::make_shared<CausalLm<Phi3Model>>("Phi3ForCausalLM", config,
                                               std::make_shared<Phi3Model>(c, options),
                                               c.hidden_size, c.vocab_size, c.tied, options);
}

}  // namespace graft
