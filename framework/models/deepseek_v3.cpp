#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>
#include <optional>

#include "graft/error.h"
#include "graft/nn/product.h"
#include "models/attention.h"
#include "models/causal_lm.h"
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

constexpr const char* kDefaults = R"({"n_group": 8, "topk_group": 4, "q_lora_rank": 1536})";

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

constexpr double kLatentEps = 1e-6;  // of the norms inside attention; the config has no field

struct DeepseekV3Config {
  std::int64_t vocab_size, hidden_size, intermediate_size, layers, heads, q_rank, kv_rank, nope_dim,
      rope_dim, v_dim, top_k, groups, top_groups, shared, first_sparse, extra_layers;
  double rms_norm_eps, routed_scale, scale;
  bool attention_bias, tied, normalize, pairs;
  Activation activation;
  ExpertSizes experts;
  Rope rope;

  explicit DeepseekV3Config(const Value& config)
      : vocab_size(required_size(config, "vocab_size")),
        hidden_size(required_size(config, "hidden_size")),
        intermediate_size(required_size(config, "intermediate_size")),
        layers(required_count(config, "num_hidden_layers")),
        heads(required_size(config, "num_attention_heads")),
        q_rank(size_or_none(config, "q_lora_rank")),
        kv_rank(required_size(config, "kv_lora_rank")),
        nope_dim(required_size(config, "qk_nope_head_dim")),
        rope_dim(required_size(config, "qk_rope_head_dim")),
        v_dim(required_size(config, "v_head_dim")),
        top_k(optional_size(config, "num_experts_per_tok", 8)),
        groups(optional_size(config, "n_group", 1)),
        top_groups(optional_size(config, "topk_group", 1)),
        shared(optional_size(config, "n_shared_experts", 1)),
        first_sparse(config.get_int("first_k_dense_replace", 3)),
        extra_layers(size_or_none(config, "num_nextn_predict_layers")),
        rms_norm_eps(config.get_double("rms_norm_eps", 1e-6)),
        routed_scale(config.get_double("routed_scaling_factor", 2.5)),
        scale(attention_scale(config, nope_dim + rope_dim)),
        attention_bias(config.get_bool("attention_bias", false)),
        tied(config.get_bool("tie_word_embeddings", false)),
        normalize(config.get_bool("norm_topk_prob", true)),
        pairs(config.get_bool("rope_interleave", true)),
        activation(activation_named(config.get_string("hidden_act", "silu"))),
        experts{required_count(config, "n_routed_experts"), hidden_size,
                required_size(config, "moe_intermediate_size")},
        rope(config, rope_dim) {
    require_multiple("n_routed_experts", experts.count, "n_group", groups);
    require_top_k(top_k, experts.count / groups * std::min(top_groups, groups));
    if (top_groups > groups)
      throw Error(ErrorKind::model, "'topk_group' is above 'n_group'")
          .found(std::to_string(top_groups) + " and " + std::to_string(groups));
  }

  /// YaRN's magnitude counts in the scores, and twice.
  static double attention_scale(const Value& config, std::int64_t dim) {
    double scale = 1 / std::sqrt(static_cast<double>(dim));
    const Value* rope = config.find("rope_parameters");
    if (!rope) rope = config.find("rope_scaling");
    if (!rope) return scale;
    const std::string type = rope->get_string("rope_type", rope->get_string("type", "default"));
    const double weight = rope->get_double("mscale_all_dim", 0);
    if (type != "default" && weight != 0) {
      const double factor = rope->at("factor").as_double();
      const double magnitude = factor <= 1 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
      scale *= magnitude * magnitude;
    }
    return scale;
  }

  std::shared_ptr<Unary> norm(std::int64_t width, double eps, const at::TensorOptions& o) const {
    return rms_norm("DeepseekV3RMSNorm", width, eps, o);
  }
};

/// Keys and values come out of a latent of kv_rank numbers, which is what the cache holds, and one
/// rotated key that all heads share.
struct DeepseekV3Attention : Block {
  DeepseekV3Attention(const DeepseekV3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("DeepseekV3Attention"),
        c_(c),
        layer_(layer),
        kv_a_proj_with_mqa(*this, "kv_a_proj_with_mqa",
                           linear(c.hidden_size, c.kv_rank + c.rope_dim, c.attention_bias, o)),
        kv_a_layernorm(*this, "kv_a_layernorm", c.norm(c.kv_rank, kLatentEps, o)),
        kv_b_proj(*this, "kv_b_proj",
                  linear(c.kv_rank, c.heads * (c.nope_dim + c.v_dim), false, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.v_dim, c.hidden_size, c.attention_bias, o)) {
    const auto width = c.heads * (c.nope_dim + c.rope_dim);
    if (c.q_rank == 0) {
      q_proj.emplace(*this, "q_proj", linear(c.hidden_size, width, false, o));
    } else {
      q_a_proj.emplace(*this, "q_a_proj", linear(c.hidden_size, c.q_rank, c.attention_bias, o));
      q_a_layernorm.emplace(*this, "q_a_layernorm", c.norm(c.q_rank, kLatentEps, o));
      q_b_proj.emplace(*this, "q_b_proj", linear(c.q_rank, width, false, o));
    }
  }

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto flat_q =
        q_proj ? (*q_proj)->forward(x)
               : (*q_b_proj)->forward((*q_a_layernorm)->forward((*q_a_proj)->forward(x)));
    const auto all_q = split_heads(flat_q, c_.heads, c_.nope_dim + c_.rope_dim);
    const auto q_rotated = rotate(all_q.narrow(-1, c_.nope_dim, c_.rope_dim), rope);
    const auto q = at::cat({all_q.narrow(-1, 0, c_.nope_dim), q_rotated}, -1);

    const auto compressed = kv_a_proj_with_mqa->forward(x).unsqueeze(1);
    auto latent = kv_a_layernorm->forward(compressed.narrow(-1, 0, c_.kv_rank));
    auto rotated = rotate(compressed.narrow(-1, c_.kv_rank, c_.rope_dim), rope);
    step.remember(layer_, latent, rotated);

    const auto expanded =
        split_heads(kv_b_proj->forward(latent.squeeze(1)), c_.heads, c_.nope_dim + c_.v_dim);
    const auto shared = rotated.expand({x.size(0), c_.heads, rotated.size(2), c_.rope_dim});
    const auto k = at::cat({expanded.narrow(-1, 0, c_.nope_dim), shared}, -1);
    const auto v = expanded.narrow(-1, c_.nope_dim, c_.v_dim);
    return o_proj->forward(join_heads(causal_attention(q, k, v, step.attention(c_.scale))));
  }

  at::Tensor rotate(const at::Tensor& x, const RopeTables& rope) const {
    return c_.pairs ? Rope::apply_to_pairs(x, rope.first, rope.second)
                    : Rope::apply(x, rope.first, rope.second);
  }

  DeepseekV3Config c_;
  std::size_t layer_;
  std::optional<Slot<Unary>> q_proj, q_a_proj, q_a_layernorm, q_b_proj;
  Slot<Unary> kv_a_proj_with_mqa, kv_a_layernorm, kv_b_proj, o_proj;
};

/// Sigmoid scores; a bias that only the choice sees; experts of the best groups alone.
struct DeepseekV3TopkRouter : Block {
  DeepseekV3TopkRouter(const DeepseekV3Config& c, const at::TensorOptions& o)
      : Block("DeepseekV3TopkRouter"), c_(c) {
    own("weight", weight, at::empty({c.experts.count, c.hidden_size}, o));
    own("e_score_correction_bias", e_score_correction_bias,
        at::empty({c.experts.count}, o.dtype(at::kFloat)));
  }

  Routing forward(const at::Tensor& rows) const {
    const auto scores = at::sigmoid(nn::linear(rows.to(at::kFloat), weight.to(at::kFloat)));
    auto choice = scores + e_score_correction_bias.to(at::kFloat);
    const auto count = rows.size(0), size = c_.experts.count / c_.groups;
    const auto grouped = choice.view({count, c_.groups, size});
    const auto best_two = std::get<0>(at::topk(grouped, std::min<std::int64_t>(2, size), -1));
    const auto groups = std::get<1>(at::topk(best_two.sum(-1), c_.top_groups, -1));
    const auto open = at::zeros_like(choice.view({count, c_.groups, size}).select(2, 0), at::kBool)
                          .scatter(1, groups, true);
    choice =
        grouped
            .masked_fill(open.logical_not().unsqueeze(2), -std::numeric_limits<float>::infinity())
            .view({count, c_.experts.count});
    const auto ids = std::get<1>(at::topk(choice, c_.top_k, -1));
    auto weights = scores.gather(1, ids);
    if (c_.normalize) weights = weights / (weights.sum(-1, /*keepdim=*/true) + 1e-20);
    return {ids, weights * c_.routed_scale};
  }

  DeepseekV3Config c_;
  at::Tensor weight, e_score_correction_bias;
};

struct DeepseekV3MoE : Unary {
  DeepseekV3MoE(const DeepseekV3Config& c, const at::TensorOptions& o)
      : Unary("DeepseekV3MoE"),
        experts(
            *this, "experts",
            std::make_shared<FusedGatedExperts>("DeepseekV3Experts", c.experts, c.activation, o)),
        gate(*this, "gate", std::make_shared<DeepseekV3TopkRouter>(c, o)),
        shared_experts(
            *this, "shared_experts",
            std::make_shared<GatedMlp>("DeepseekV3MLP", c.hidden_size,
                                       c.experts.intermediate * c.shared, c.activation, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto routing = gate->forward(rows);
    return (experts->forward(rows, routing.ids, routing.weights) + shared_experts->forward(rows))
        .view(x.sizes());
  }

  Slot<nn::Experts> experts;
  Slot<DeepseekV3TopkRouter> gate;
  Slot<Unary> shared_experts;
};

std::shared_ptr<Unary> feed_forward(const DeepseekV3Config& c, std::size_t layer,
                                    const at::TensorOptions& o) {
  if (static_cast<std::int64_t>(layer) >= c.first_sparse)
    return std::make_shared<DeepseekV3MoE>(c, o);
  return std::make_shared<GatedMlp>("DeepseekV3MLP", c.hidden_size, c.intermediate_size,
                                    c.activation, o);
}

struct DeepseekV3DecoderLayer : Block {
  DeepseekV3DecoderLayer(const DeepseekV3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("DeepseekV3DecoderLayer"),
        self_attn(*this, "self_attn", std::make_shared<DeepseekV3Attention>(c, layer, o)),
        mlp(*this, "mlp", feed_forward(c, layer, o)),
        input_layernorm(*this, "input_layernorm", c.norm(c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 c.norm(c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    const std::string attention = path + "self_attn.", norm = path + "input_layernorm";
    if (self_attn->q_proj) {
      groups.push_back({{attention + "q_proj", attention + "kv_a_proj_with_mqa"}, norm});
    } else {
      groups.push_back({{attention + "q_a_proj", attention + "kv_a_proj_with_mqa"}, norm});
      groups.push_back({{attention + "q_b_proj"}, attention + "q_a_layernorm"});
    }
    groups.push_back({{attention + "kv_b_proj"}, attention + "kv_a_layernorm"});
    groups.push_back({{attention + "o_proj"}, ""});
    if (const auto* moe = dynamic_cast<const DeepseekV3MoE*>(mlp.get().get())) {
      add_mlp_groups(groups, path + "mlp.shared_experts.", "");
      add_expert_groups(groups, path + "mlp.experts.", *moe->experts);
    } else {
      add_mlp_groups(groups, path + "mlp.", path + "post_attention_layernorm");
    }
  }

  Slot<DeepseekV3Attention> self_attn;
  Slot<Unary> mlp, input_layernorm, post_attention_layernorm;
};

struct DeepseekV3Model : Block {
  DeepseekV3Model(const DeepseekV3Config& c, const at::TensorOptions& o)
      : Block("DeepseekV3Model"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", c.norm(c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<DeepseekV3DecoderLayer>(c, static_cast<std::size_t>(i), o));
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
  SlotList<DeepseekV3DecoderLayer> layers;
  Slot<Unary> norm;
};

struct DeepseekV3ForCausalLM : CausalLm<DeepseekV3Model> {
  DeepseekV3ForCausalLM(const Value& config, const DeepseekV3Config& c, const at::TensorOptions& o)
      : CausalLm("DeepseekV3ForCausalLM", config, std::make_shared<DeepseekV3Model>(c, o),
                 c.hidden_size, c.vocab_size, c.tied, o),
        layers_(c.layers),
        extra_layers_(c.extra_layers) {}

  std::vector<UnusedTensors> unused_tensors() const override {
    auto unused = Model::unused_tensors();
    for (std::int64_t i = layers_; i < layers_ + extra_layers_; ++i)
      unused.push_back({"model.layers." + std::to_string(i) + ".*",
                        "predicts further tokens, which graft does not", true});
    return unused;
  }

  std::int64_t layers_, extra_layers_;
};

}  // namespace

std::shared_ptr<Model> make_deepseek_v3(const Value& given, const at::TensorOptions& options) {
  const Value config = with_defaults(given, kDefaults);
  return std::make_shared<DeepseekV3ForCausalLM>(config, DeepseekV3Config(config), options);
}

std::shared_ptr<nn::Block> sequential_deepseek_v3_experts(const ModuleSpec& spec,
                                                          const Value& text) {
  const DeepseekV3Config c(text);
  return sequential_gated_experts("SequentialDeepseekV3Experts", "DeepseekV3MLP", c.experts,
                                  c.activation, RoutedExperts::Weigh::outputs,
                                  at::TensorOptions(at::kMeta).dtype(spec.dtype));
}

}  // namespace graft
