#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>

#include <cmath>

#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/experts.h"
#include "models/model_table.h"
#include "models/restructurings.h"
#include "models/rope.h"
#include "models/through_layers.h"

namespace graft {
namespace {

constexpr const char* kDefaults =
    R"({"sliding_window": 128, "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 150000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                     "truncate": false, "original_max_position_embeddings": 4096}})";

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

/// (up + 1) * gate * sigmoid(alpha * gate), both clamped first.
struct ClampedSwiglu {
  double alpha, limit;

  at::Tensor operator()(const at::Tensor& gate, const at::Tensor& up) const {
    const auto low = at::clamp_max(gate, limit);
    return (at::clamp(up, -limit, limit) + 1) * (low * at::sigmoid(low * alpha));
  }
};

struct GptOssConfig : DecoderSizes {
  std::int64_t window, top_k;
  std::vector<bool> windowed;  // by layer
  ExpertSizes experts;
  ClampedSwiglu swiglu;
  Rope rope;

  explicit GptOssConfig(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-5),
        window(size_or_none(config, "sliding_window")),
        top_k(optional_size(config, "num_experts_per_tok",
                            optional_size(config, "experts_per_token", 4))),
        windowed(layers_of_type(config, "sliding_attention", layers,
                                [](std::int64_t i, const Value&) { return i % 2 == 0; })),
        experts{optional_count(config, "num_local_experts", 128), hidden_size, intermediate_size},
        swiglu{config.get_double("swiglu_alpha", 1.702), config.get_double("swiglu_limit", 7.0)},
        rope(config, head_dim) {
    attention_bias = config.get_bool("attention_bias", true);
    require_top_k(top_k, experts.count);
  }

  std::shared_ptr<Unary> norm(const at::TensorOptions& o) const {
    return wide_rms_norm("GptOssRMSNorm", hidden_size, rms_norm_eps, 0, o);
  }
};

struct GptOssAttention : Block {
  GptOssAttention(const GptOssConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("GptOssAttention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.attention_bias, o)),
        k_proj(*this, "k_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        v_proj(*this, "v_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, c.attention_bias, o)) {
    own("sinks", sinks, at::empty({c.heads}, o));
  }

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), c_.heads, c_.head_dim);
    auto k = split_heads(k_proj->forward(x), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    q = Rope::apply(q, rope.first, rope.second);
    k = Rope::apply(k, rope.first, rope.second);
    step.remember(layer_, k, v);
    auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    how.window = c_.windowed[layer_] ? c_.window : 0;
    how.sinks = sinks;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  GptOssConfig c_;
  std::size_t layer_;
  at::Tensor sinks;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

/// gate_up_proj [E, H, 2 I] with gate and up in turn, down_proj [E, I, H], used as x W + b.
struct GptOssExperts : RoutedExperts {
  GptOssExperts(const GptOssConfig& c, const at::TensorOptions& o)
      : RoutedExperts("GptOssExperts", c.experts.count, Weigh::outputs),
        sizes_(c.experts),
        swiglu_(c.swiglu) {
    const auto [count, hidden, intermediate] = c.experts;
    own("gate_up_proj", gate_up_proj, at::empty({count, hidden, 2 * intermediate}, o));
    own("gate_up_proj_bias", gate_up_proj_bias, at::empty({count, 2 * intermediate}, o));
    own("down_proj", down_proj, at::empty({count, intermediate, hidden}, o));
    own("down_proj_bias", down_proj_bias, at::empty({count, hidden}, o));
  }

  std::vector<nn::TensorPart> parts() const override {
    std::vector<nn::TensorPart> parts;
    for (std::int64_t e = 0; e < sizes_.count; ++e)
      for (std::int64_t start : {0, 1}) {
        const std::string name = std::to_string(e) + (start == 0 ? ".gate_proj." : ".up_proj.");
        nn::Region region{
            .index = e, .dim = 1, .start = start, .length = sizes_.intermediate, .step = 2};
        region.transpose = true;
        parts.push_back({"gate_up_proj", name + "weight", region});
        region.dim = 0;
        region.transpose = false;
        parts.push_back({"gate_up_proj_bias", name + "bias", region});
      }
    for (std::int64_t e = 0; e < sizes_.count; ++e) {
      const std::string name = std::to_string(e) + ".down_proj.";
      parts.push_back({"down_proj", name + "weight", {.index = e, .transpose = true}});
      parts.push_back({"down_proj_bias", name + "bias", {.index = e}});
    }
    return parts;
  }

  void describe(ModuleSpec& spec) const override {
    RoutedExperts::describe(spec);
    spec.dtype = gate_up_proj.scalar_type();
  }

  at::Tensor run(const at::Tensor& rows, const SortedPairs& pairs,
                 const at::Tensor& /*x*/) override {
    const auto both = grouped_linear(rows, pairs, gate_up_proj.transpose(1, 2), gate_up_proj_bias);
    const auto inner =
        swiglu_(both.slice(1, 0, c10::nullopt, 2), both.slice(1, 1, c10::nullopt, 2));
    return grouped_linear(inner, pairs, down_proj.transpose(1, 2), down_proj_bias);
  }

  ExpertSizes sizes_;
  ClampedSwiglu swiglu_;
  at::Tensor gate_up_proj, gate_up_proj_bias, down_proj, down_proj_bias;
};

/// One expert alone. Transformers has no class for it; the name follows its families with one.
struct GptOssExpert : Unary {
  GptOssExpert(const GptOssConfig& c, const at::TensorOptions& o)
      : Unary("GptOssExpertMLP"),
        swiglu_(c.swiglu),
        gate_proj(*this, "gate_proj", linear(c.hidden_size, c.intermediate_size, true, o)),
        up_proj(*this, "up_proj", linear(c.hidden_size, c.intermediate_size, true, o)),
        down_proj(*this, "down_proj", linear(c.intermediate_size, c.hidden_size, true, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto product = swiglu_(gate_proj->forward(x), up_proj->forward(x));
    return down_proj->forward(product);
  }

  ClampedSwiglu swiglu_;
  Slot<Unary> gate_proj, up_proj, down_proj;
};

struct GptOssMlp : Unary {
  GptOssMlp(const GptOssConfig& c, const at::TensorOptions& o)
      : Unary("GptOssMLP"),
        top_k_(c.top_k),
        router(*this, "router",
               linear("GptOssTopKRouter", c.hidden_size, c.experts.count, true, o)),
        experts(*this, "experts", std::make_shared<GptOssExperts>(c, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto [logits, ids] = at::topk(router->forward(rows), top_k_, -1);
    return experts->forward(rows, ids, at::softmax(logits, 1)).view(x.sizes());
  }

  std::int64_t top_k_;
  Slot<Unary> router;
  Slot<nn::Experts> experts;
};

struct GptOssDecoderLayer : Block {
  GptOssDecoderLayer(const GptOssConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("GptOssDecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<GptOssAttention>(c, layer, o)),
        mlp(*this, "mlp", std::make_shared<GptOssMlp>(c, o)),
        input_layernorm(*this, "input_layernorm", c.norm(o)),
        post_attention_layernorm(*this, "post_attention_layernorm", c.norm(o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + mlp->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    add_attention_groups(groups, path + "self_attn.", path + "input_layernorm", repeated_values_);
    if (mlp->experts.get()->own_tensors().empty())  // separate ones
      for (std::int64_t i = 0; i < mlp->experts->size(); ++i) {
        const std::string expert = path + "mlp.experts." + std::to_string(i) + ".";
        groups.push_back({{expert + "gate_proj", expert + "up_proj"}, ""});
        // up + 1 multiplies: a scale does not pass through.
        groups.push_back({{expert + "down_proj"}, ""});
      }
  }

  bool repeated_values_;
  Slot<GptOssAttention> self_attn;
  Slot<GptOssMlp> mlp;
  Slot<Unary> input_layernorm, post_attention_layernorm;
};

struct GptOssModel : Block {
  GptOssModel(const GptOssConfig& c, const at::TensorOptions& o)
      : Block("GptOssModel"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", c.norm(o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<GptOssDecoderLayer>(c, static_cast<std::size_t>(i), o));
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
  SlotList<GptOssDecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_gpt_oss(const Value& given, const at::TensorOptions& options) {
  const Value config = with_defaults(given, kDefaults);
  const GptOssConfig c(config);
  return std::make_shared<CausalLm<GptOssModel>>("GptOssForCausalLM", config,
                                                 std::make_shared<GptOssModel>(c, options),
                                                 c.hidden_size, c.vocab_size, c.tied, options);
}

std::shared_ptr<nn::Block> sequential_gpt_oss_experts(const ModuleSpec& spec, const Value& text) {
  const GptOssConfig c(text);
  return std::make_shared<SequentialExperts>(
      "SequentialGptOssExperts", c.experts.count, RoutedExperts::Weigh::outputs, [&] {
        return std::make_shared<GptOssExpert>(c, at::TensorOptions(at::kMeta).dtype(spec.dtype));
      });
}

}  // namespace graft
