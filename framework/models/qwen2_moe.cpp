#include <ATen/TensorOperators.h>
#include <ATen/ops/sigmoid.h>

#include <cmath>

#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/experts.h"
#include "models/gated_mlp.h"
#include "models/model_table.h"
#include "models/restructurings.h"
#include "models/rope.h"
#include "models/routing.h"
#include "models/through_layers.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Qwen2MoeConfig : DecoderSizes {
  std::int64_t window, top_k, shared_intermediate;
  std::vector<bool> windowed, sparse;  // by layer
  ExpertSizes experts;
  bool normalize, qkv_bias;
  Rope rope;

  explicit Qwen2MoeConfig(const Value& config)
      : DecoderSizes(config),
        window(config.get_bool("use_sliding_window", false) ? size_or_none(config, "sliding_window")
                                                            : 0),
        top_k(optional_size(config, "num_experts_per_tok", 4)),
        shared_intermediate(optional_size(config, "shared_expert_intermediate_size", 5632)),
        windowed(layers_of_type(config, "sliding_attention", layers, windowed_by_default)),
        sparse(sparse_layers(config, layers)),
        experts{
            optional_count(config, "num_experts", optional_count(config, "num_local_experts", 60)),
            hidden_size, optional_size(config, "moe_intermediate_size", 1408)},
        normalize(config.get_bool("norm_topk_prob", false)),
        qkv_bias(config.get_bool("qkv_bias", true)),
        rope(config, head_dim) {
    require_top_k(top_k, experts.count);
  }

  static bool windowed_by_default(std::int64_t layer, const Value& config) {
    return config.get_bool("use_sliding_window", false) && layer % 2 == 0 &&
           layer < config.get_int("max_window_layers", 28);
  }

  static std::vector<bool> sparse_layers(const Value& config, std::int64_t layers) {
    const auto every = optional_size(config, "decoder_sparse_step", 1);
    std::vector<bool> sparse;
    for (std::int64_t i = 0; i < layers; ++i) sparse.push_back((i + 1) % every == 0);
    if (const Value* dense = config.find("mlp_only_layers"))
      for (const auto& layer : dense->as_array())
        if (layer.as_int() >= 0 && layer.as_int() < layers)
          sparse[static_cast<std::size_t>(layer.as_int())] = false;
    return sparse;
  }
};

struct Qwen2MoeAttention : Block {
  Qwen2MoeAttention(const Qwen2MoeConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Qwen2MoeAttention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.qkv_bias, o)),
        k_proj(*this, "k_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, c.qkv_bias, o)),
        v_proj(*this, "v_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, c.qkv_bias, o)),
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

  Qwen2MoeConfig c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

struct Qwen2MoeSparseMoeBlock : Unary {
  Qwen2MoeSparseMoeBlock(const Qwen2MoeConfig& c, const at::TensorOptions& o)
      : Unary("Qwen2MoeSparseMoeBlock"),
        top_k_(c.top_k),
        normalize_(c.normalize),
        gate(*this, "gate", linear("Qwen2MoeTopKRouter", c.hidden_size, c.experts.count, false, o)),
        experts(*this, "experts",
                std::make_shared<FusedGatedExperts>("Qwen2MoeExperts", c.experts, c.activation, o)),
        shared_expert(*this, "shared_expert",
                      std::make_shared<GatedMlp>("Qwen2MoeMLP", c.hidden_size,
                                                 c.shared_intermediate, c.activation, o)),
        shared_expert_gate(*this, "shared_expert_gate", linear(c.hidden_size, 1, false, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto routing = route_by_probability(gate->forward(rows), top_k_, normalize_);
    const auto routed = experts->forward(rows, routing.ids, routing.weights);
    const auto shared =
        at::sigmoid(shared_expert_gate->forward(rows)) * shared_expert->forward(rows);
    return (routed + shared).view(x.sizes());
  }

  std::int64_t top_k_;
  bool normalize_;
  Slot<Unary> gate;
  Slot<nn::Experts> experts;
  Slot<Unary> shared_expert, shared_expert_gate;
};

std::shared_ptr<Unary> feed_forward(const Qwen2MoeConfig& c, std::size_t layer,
                                    const at::TensorOptions& o) {
  if (c.sparse[layer]) return std::make_shared<Qwen2MoeSparseMoeBlock>(c, o);
  return std::make_shared<GatedMlp>("Qwen2MoeMLP", c.hidden_size, c.intermediate_size, c.activation,
                                    o);
}

struct Qwen2MoeDecoderLayer : Block {
  Qwen2MoeDecoderLayer(const Qwen2MoeConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Qwen2MoeDecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<Qwen2MoeAttention>(c, layer, o)),
        mlp(*this, "mlp", feed_forward(c, layer, o)),
        input_layernorm(*this, "input_layernorm",
                        rms_norm("Qwen2MoeRMSNorm", c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 rms_norm("Qwen2MoeRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    add_attention_groups(groups, path + "self_attn.", path + "input_layernorm", repeated_values_);
    if (const auto* moe = dynamic_cast<const Qwen2MoeSparseMoeBlock*>(mlp.get().get())) {
      add_expert_groups(groups, path + "mlp.experts.", *moe->experts);
      const auto shared = path + "mlp.shared_expert.";
      groups.push_back({{shared + "gate_proj", shared + "up_proj"}, ""});
      groups.push_back({{shared + "down_proj"}, shared + "up_proj"});
    } else {
      add_mlp_groups(groups, path + "mlp.", path + "post_attention_layernorm");
    }
  }

  bool repeated_values_;
  Slot<Qwen2MoeAttention> self_attn;
  Slot<Unary> mlp, input_layernorm, post_attention_layernorm;
};

struct Qwen2MoeModel : Block {
  Qwen2MoeModel(const Qwen2MoeConfig& c, const at::TensorOptions& o)
      : Block("Qwen2MoeModel"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", rms_norm("Qwen2MoeRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Qwen2MoeDecoderLayer>(c, static_cast<std::size_t>(i), o));
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
  SlotList<Qwen2MoeDecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_qwen2_moe(const Value& config, const at::TensorOptions& options) {
  const Qwen2MoeConfig c(config);
  return std::make_shared<CausalLm<Qwen2MoeModel>>("Qwen2MoeForCausalLM", config,
                                                   std::make_shared<Qwen2MoeModel>(c, options),
                                                   c.hidden_size, c.vocab_size, c.tied, options);
}

std::shared_ptr<nn::Block> sequential_qwen2_moe_experts(const ModuleSpec& spec, const Value& text) {
  const Qwen2MoeConfig c(text);
  return sequential_gated_experts("SequentialQwen2MoeExperts", "Qwen2MoeMLP", c.experts,
                                  c.activation, RoutedExperts::Weigh::outputs,
                                  at::TensorOptions(at::kMeta).dtype(spec.dtype));
}

}  // namespace graft
