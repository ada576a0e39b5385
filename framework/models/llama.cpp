#include <ATen/core/Tensor.h>

#include "graft/error.h"
#include "graft/nn/layers.h"
#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/config_fields.h"
#include "models/decoder_graph.h"
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

struct LlamaConfig {
  std::int64_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
  double rms_norm_eps;
  bool attention_bias, mlp_bias, tied;
  Activation activation;
  Rope rope;

  explicit LlamaConfig(const Value& config)
      : vocab_size(required_size(config, "vocab_size")),
        hidden_size(required_size(config, "hidden_size")),
        intermediate_size(required_size(config, "intermediate_size")),
        layers(required_count(config, "num_hidden_layers")),
        heads(required_size(config, "num_attention_heads")),
        kv_heads(optional_size(config, "num_key_value_heads", heads)),
        head_dim(optional_size(config, "head_dim", std::max<std::int64_t>(1, hidden_size / heads))),
        rms_norm_eps(config.get_double("rms_norm_eps", 1e-6)),
        attention_bias(config.get_bool("attention_bias", false)),
        mlp_bias(config.get_bool("mlp_bias", false)),
        tied(config.get_bool("tie_word_embeddings", false)),
        activation(activation_named(config.get_string("hidden_act", "silu"))),
        rope(config, head_dim) {
    require_multiple("num_attention_heads", heads, "num_key_value_heads", kv_heads);
  }
};

std::shared_ptr<Unary> norm(const LlamaConfig& c, const at::TensorOptions& options) {
  return std::make_shared<nn::RmsNorm>("LlamaRMSNorm", c.hidden_size, c.rms_norm_eps, options);
}

struct LlamaAttention : Block {
  LlamaAttention(const LlamaConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("LlamaAttention"),
        heads_(c.heads),
        kv_heads_(c.kv_heads),
        head_dim_(c.head_dim),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.attention_bias, o)),
        k_proj(*this, "k_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        v_proj(*this, "v_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, c.attention_bias, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), heads_, head_dim_);
    auto k = split_heads(k_proj->forward(x), kv_heads_, head_dim_);
    auto v = split_heads(v_proj->forward(x), kv_heads_, head_dim_);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    const auto how = step.attention(1.0 / std::sqrt(static_cast<double>(head_dim_)));
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  std::int64_t heads_, kv_heads_, head_dim_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

struct LlamaDecoderLayer : Block {
  LlamaDecoderLayer(const LlamaConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("LlamaDecoderLayer"),
        self_attn(*this, "self_attn", std::make_shared<LlamaAttention>(c, layer, o)),
        mlp(*this, "mlp",
            std::make_shared<GatedMlp>("LlamaMLP", c.hidden_size, c.intermediate_size,
                                       c.activation, o, c.mlp_bias)),
        input_layernorm(*this, "input_layernorm", norm(c, o)),
        post_attention_layernorm(*this, "post_attention_layernorm", norm(c, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  Slot<LlamaAttention> self_attn;
  Slot<GatedMlp> mlp;
  Slot<Unary> input_layernorm, post_attention_layernorm;
};

struct LlamaModel : Block {
  LlamaModel(const LlamaConfig& c, const at::TensorOptions& o)
      : Block("LlamaModel"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens",
                     std::make_shared<nn::Embedding>(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", graft::norm(c, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<LlamaDecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  at::Tensor forward(const Batch& batch) {
    auto x = embed_tokens->forward(batch.input_ids);
    const DecodingStep step(batch);
    const auto rope = step.tables(rope_, x.scalar_type(), x.device());
    x = through_layers(batch, layers, std::move(x), step, rope);
    return norm->run(x);
  }

  Rope rope_;
  Slot<Unary> embed_tokens;
  SlotList<LlamaDecoderLayer> layers;
  Slot<Unary> norm;
};

struct LlamaForCausalLM : Model, GraphedDecoder {
  LlamaForCausalLM(const Value& config, const LlamaConfig& c, const at::TensorOptions& o)
      : Model("LlamaForCausalLM", config),
        tied_(c.tied),
        grouped_values_(c.heads != c.kv_heads),
        c_(c),
        model(*this, "model", std::make_shared<LlamaModel>(c, o)),
        lm_head(*this, "lm_head", linear(c.hidden_size, c.vocab_size, false, o)) {}

  Output output() const override { return Output::logits; }
  std::size_t cache_layers() const override { return model->layers.size(); }

  at::Tensor forward(const Batch& batch) override {
    auto x = model->forward(batch);
    if (batch.last_logits_only) x = x.narrow(1, x.size(1) - 1, 1).contiguous();
    return lm_head->run(x);
  }

  std::optional<DecoderGraph> decoder_graph() override {
    DecoderGraph graph;
    graph.take_sizes(c_);
    graph.rope = &c_.rope;
    graph.embedding = &*model->embed_tokens;
    graph.norm = &*model->norm;
    graph.head = &*lm_head;
    for (std::size_t i = 0; i < model->layers.size(); ++i) {
      auto& layer = model->layers[i];
      graph.add_layer(*layer.self_attn, *layer.mlp, *layer.input_layernorm,
                      *layer.post_attention_layernorm);
    }
    return graph;
  }

  std::vector<TiedTensor> tied_tensors() const override {
    if (!tied_) return {};
    return {{"model.embed_tokens.weight", "lm_head.weight"}};
  }

  std::vector<CheckpointPrefix> checkpoint_prefixes() const override { return decoder_prefixes(); }

  std::vector<InputGroup> input_groups() const override {
    std::vector<InputGroup> groups;
    for (std::size_t i = 0; i < model->layers.size(); ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".";
      const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
      groups.push_back({{attention + "q_proj", attention + "k_proj", attention + "v_proj"},
                        layer + "input_layernorm"});
      // Grouped values are repeated over heads: their rows are no longer o_proj's columns one to
      // one.
      groups.push_back({{attention + "o_proj"}, grouped_values_ ? "" : attention + "v_proj"});
      groups.push_back({{mlp + "gate_proj", mlp + "up_proj"}, layer + "post_attention_layernorm"});
      groups.push_back({{mlp + "down_proj"}, mlp + "up_proj"});
    }
    return groups;
  }

  bool tied_, grouped_values_;
  LlamaConfig c_;
  Slot<LlamaModel> model;
  Slot<Unary> lm_head;
};

}  // namespace

std::shared_ptr<Model> make_llama(const Value& config, const at::TensorOptions& options) {
  return std::make_shared<LlamaForCausalLM>(config, LlamaConfig(config), options);
}

}  // namespace graft
