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

struct Qwen2Config : DecoderSizes {
  std::int64_t window;
  std::vector<bool> windowed;  // by layer
  Rope rope;

  explicit Qwen2Config(const Value& config)
      : DecoderSizes(config),
        window(config.get_bool("use_sliding_window", false) ? size_or_none(config, "sliding_window")
                                                            : 0),
        windowed(layers_of_type(config, "sliding_attention", layers, windowed_by_default)),
        rope(config, head_dim) {}

  static bool windowed_by_default(std::int64_t layer, const Value& config) {
    return config.get_bool("use_sliding_window", false) &&
           layer >= config.get_int("max_window_layers", 28);
  }
};

struct Qwen2Attention : Block {
  Qwen2Attention(const Qwen2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Qwen2Attention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, true, o)),
        k_proj(*this, "k_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, true, o)),
        v_proj(*this, "v_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, true, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, false, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), c_.heads, c_.head_dim);
    auto k = split_heads(k_proj->forward(x), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    how.window = c_.windowed[layer_] ? c_.window : 0;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  Qwen2Config c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

struct Qwen2DecoderLayer : Block {
  Qwen2DecoderLayer(const Qwen2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Qwen2DecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<Qwen2Attention>(c, layer, o)),
        mlp(*this, "mlp",
            std::make_shared<GatedMlp>("Qwen2MLP", c.hidden_size, c.intermediate_size, c.activation,
                                       o)),
        input_layernorm(*this, "input_layernorm",
                        rms_norm("Qwen2RMSNorm", c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 rms_norm("Qwen2RMSNorm", c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    add_attention_groups(groups, path + "self_attn.", path + "input_layernorm", repeated_values_);
    add_mlp_groups(groups, path + "mlp.", path + "post_attention_layernorm");
  }

  bool repeated_values_;
  Slot<Qwen2Attention> self_attn;
  Slot<Unary> mlp, input_layernorm, post_attention_layernorm;
};

struct Qwen2Model : Block {
  Qwen2Model(const Qwen2Config& c, const at::TensorOptions& o)
      : Block("Qwen2Model"),
        c_(c),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", rms_norm("Qwen2RMSNorm", c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Qwen2DecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  at::Tensor hidden(const Batch& batch) {
    auto x = embed_tokens->forward(batch.input_ids);
    const DecodingStep step(batch);
    const auto rope = step.tables(rope_, x.scalar_type(), x.device());
    x = through_layers(batch, layers, std::move(x), step, rope);
    return norm->run(x);
  }

  bool describe_graph(DecoderGraph& graph) {
    graph.take_sizes(c_);
    graph.rope = &rope_;
    graph.embedding = &*embed_tokens;
    graph.norm = &*norm;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      auto* mlp = dynamic_cast<GatedMlp*>(&*layers[i].mlp);
      if (!mlp) return false;
      auto& attention = *layers[i].self_attn;
      auto& added = graph.add_layer(attention, *mlp, *layers[i].input_layernorm,
                                    *layers[i].post_attention_layernorm);
      added.window = c_.windowed[i] ? c_.window : 0;
    }
    return true;
  }

  Qwen2Config c_;
  Rope rope_;
  Slot<Unary> embed_tokens;
  SlotList<Qwen2DecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_qwen2(const Value& config, const at::TensorOptions& options) {
  const Qwen2Config c(config);
  return std::make_shared<CausalLm<Qwen2Model>>("Qwen2ForCausalLM", config,
                                                std::make_shared<Qwen2Model>(c, options),
                                                c.hidden_size, c.vocab_size, c.tied, options);
}

}  // namespace graft
