#include <cmath>

#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/experts.h"
#include "models/model_table.h"
#include "models/restructurings.h"
#include "models/rope.h"
#include "models/routing.h"
#include "models/through_layers.h"

namespace graft {
namespace {

constexpr const char* kDefaults = R"({"rope_theta": 1000000.0, "num_key_value_heads": 8})";

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct MixtralConfig : DecoderSizes {
  std::int64_t window, top_k;
  ExpertSizes experts;
  Rope rope;

  explicit MixtralConfig(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-5),
        window(size_or_none(config, "sliding_window")),
        top_k(optional_size(config, "num_experts_per_tok", 2)),
        experts{optional_count(config, "num_local_experts", 8), hidden_size, intermediate_size},
        rope(config, head_dim) {
    require_top_k(top_k, experts.count);
  }
};

struct MixtralAttention : Block {
  MixtralAttention(const MixtralConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("MixtralAttention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, false, o)),
        k_proj(*this, "k_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, false, o)),
        v_proj(*this, "v_proj", linear(c.hidden_size, c.kv_heads * c.head_dim, false, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, false, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), c_.heads, c_.head_dim);
    auto k = split_heads(k_proj->forward(x), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    how.window = c_.window;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  MixtralConfig c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

struct MixtralSparseMoeBlock : Unary {
  MixtralSparseMoeBlock(const MixtralConfig& c, const at::TensorOptions& o)
      : Unary("MixtralSparseMoeBlock"),
        top_k_(c.top_k),
        gate(*this, "gate", linear("MixtralTopKRouter", c.hidden_size, c.experts.count, false, o)),
        experts(*this, "experts",
                std::make_shared<FusedGatedExperts>("MixtralExperts", c.experts, c.activation, o)) {
  }

  at::Tensor forward(const at::Tensor& x) override {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto routing = route_by_probability(gate->forward(rows), top_k_, /*normalize=*/true);
    return experts->forward(rows, routing.ids, routing.weights).view(x.sizes());
  }

  std::int64_t top_k_;
  Slot<Unary> gate;
  Slot<nn::Experts> experts;
};

struct MixtralDecoderLayer : Block {
  MixtralDecoderLayer(const MixtralConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("MixtralDecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<MixtralAttention>(c, layer, o)),
        mlp(*this, "mlp", std::make_shared<MixtralSparseMoeBlock>(c, o)),
        input_layernorm(*this, "input_layernorm",
                        rms_norm("MixtralRMSNorm", c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 rms_norm("MixtralRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    add_attention_groups(groups, path + "self_attn.", path + "input_layernorm", repeated_values_);
    add_expert_groups(groups, path + "mlp.experts.", *mlp->experts);
  }

  bool repeated_values_;
  Slot<MixtralAttention> self_attn;
  Slot<MixtralSparseMoeBlock> mlp;
  Slot<Unary> input_layernorm, post_attention_layernorm;
};

struct MixtralModel : Block {
  MixtralModel(const MixtralConfig& c, const at::TensorOptions& o)
      : Block("MixtralModel"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", rms_norm("MixtralRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<MixtralDecoderLayer>(c, static_cast<std::size_t>(i), o));
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
  SlotList<MixtralDecoderLayer> layers;
  Slot<Unary> norm;
};

struct MixtralForCausalLM : CausalLm<MixtralModel> {
  MixtralForCausalLM(const Value& config, const MixtralConfig& c, const at::TensorOptions& o)
      : CausalLm("MixtralForCausalLM", config, std::make_shared<MixtralModel>(c, o), c.hidden_size,
                 c.vocab_size, c.tied, o) {}

  /// Files of Transformers keep the names of the first release; GPTQModel writes these.
  std::vector<CheckpointRename> checkpoint_renames() const override {
    return {{".block_sparse_moe.", ".mlp."},
            {".w1.", ".gate_proj."},
            {".w2.", ".down_proj."},
            {".w3.", ".up_proj."}};
  }
};

}  // namespace

std::shared_ptr<Model> make_mixtral(const Value& given, const at::TensorOptions& options) {
  const Value config = with_defaults(given, kDefaults);
  return std::make_shared<MixtralForCausalLM>(config, MixtralConfig(config), options);
}

std::shared_ptr<nn::Block> sequential_mixtral_experts(const ModuleSpec& spec, const Value& text) {
  const MixtralConfig c(text);
  return sequential_gated_experts("SequentialMixtralExperts", "MixtralMLP", c.experts, c.activation,
                                  RoutedExperts::Weigh::outputs,
                                  at::TensorOptions(at::kMeta).dtype(spec.dtype));
}

}  // namespace graft
