#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/floor.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/topk.h>

#include <cmath>

#include "graft/error.h"
#include "models/attention.h"
#include "models/causal_lm.h"
#include "models/decoder_sizes.h"
#include "models/decoding_step.h"
#include "models/experts.h"
#include "models/gated_mlp.h"
#include "models/model_table.h"
#include "models/restructurings.h"
#include "models/rope.h"
#include "models/through_layers.h"

namespace graft {
namespace {

constexpr const char* kDefaults =
    R"({"rope_theta": 500000.0, "num_key_value_heads": 8, "head_dim": 128})";

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Llama4TextConfig : DecoderSizes {
  std::int64_t chunk, top_k, dense_intermediate;
  std::vector<bool> rotated, chunked, sparse;  // by layer
  bool normalize_heads, tune_temperature;
  double temperature_scale, temperature_floor;
  ExpertSizes experts;
  Rope rope;

  explicit Llama4TextConfig(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-5),
        chunk(optional_size(config, "attention_chunk_size", 8192)),
        top_k(optional_size(config, "num_experts_per_tok", 1)),
        dense_intermediate(optional_size(config, "intermediate_size_mlp", 16384)),
        rotated(rotated_layers(config, layers)),
        sparse(sparse_layers(config, layers)),
        normalize_heads(config.get_bool("use_qk_norm", true)),
        tune_temperature(is_on(config, "attn_temperature_tuning")),
        temperature_scale(config.get_double("attn_scale", 0.1)),
        temperature_floor(config.get_double("floor_scale", 8192)),
        experts{optional_count(config, "num_local_experts", 16), hidden_size, intermediate_size},
        rope(config, head_dim) {
    require_top_k(top_k, experts.count);
    if (!(temperature_floor > 0)) throw Error(ErrorKind::model, "'floor_scale' must be positive");
    chunked = config.find("layer_types")
                  ? layers_of_type(config, "chunked_attention", layers,
                                   [](std::int64_t, const Value&) { return false; })
                  : rotated;
  }

  /// The list says 1 where a layer rotates; an empty one means none was given.
  static std::vector<bool> rotated_layers(const Value& config, std::int64_t layers) {
    std::vector<bool> out;
    const Value* list = config.find("no_rope_layers");
    if (list && !list->as_array().empty()) {
      for (const auto& value : list->as_array())
        out.push_back(value.is_bool() ? value.as_bool() : value.as_int() != 0);
      if (static_cast<std::int64_t>(out.size()) != layers)
        throw Error(ErrorKind::model, "'no_rope_layers' has another length than there are layers")
            .expected(std::to_string(layers))
            .found(std::to_string(out.size()));
      return out;
    }
    const auto interval = optional_size(config, "no_rope_layer_interval", 4);
    for (std::int64_t i = 0; i < layers; ++i) out.push_back((i + 1) % interval != 0);
    return out;
  }

  static std::vector<bool> sparse_layers(const Value& config, std::int64_t layers) {
    std::vector<bool> out(static_cast<std::size_t>(layers), false);
    if (const Value* list = config.find("moe_layers")) {
      for (const auto& layer : list->as_array())
        if (layer.as_int() >= 0 && layer.as_int() < layers)
          out[static_cast<std::size_t>(layer.as_int())] = true;
      return out;
    }
    const auto step = optional_size(config, "interleave_moe_layer_step", 1);
    for (std::int64_t i = step - 1; i < layers; i += step) out[static_cast<std::size_t>(i)] = true;
    return out;
  }

  /// A flag that early configs give as a number.
  static bool is_on(const Value& config, std::string_view field) {
    const Value* value = config.find(field);
    return !value || (value->is_bool() ? value->as_bool() : value->as_double() != 0);
  }
};

/// x / rms(x), without a weight.
at::Tensor l2_norm(const at::Tensor& x, double eps) {
  const auto wide = x.to(at::kFloat);
  return (wide * at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + eps)).to(x.scalar_type());
}

struct Llama4TextAttention : Block {
  Llama4TextAttention(const Llama4TextConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Llama4TextAttention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.attention_bias, o)),
        k_proj(*this, "k_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        v_proj(*this, "v_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, c.attention_bias, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), c_.heads, c_.head_dim);
    auto k = split_heads(k_proj->forward(x), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    if (c_.rotated[layer_]) {
      q = rotate(q, rope);
      k = rotate(k, rope);
      if (c_.normalize_heads) {
        q = l2_norm(q, c_.rms_norm_eps);
        k = l2_norm(k, c_.rms_norm_eps);
      }
    } else if (c_.tune_temperature) {
      // Scales queries with their position, for texts longer than those trained on
      // (arXiv 2501.19399).
      const auto positions = step.positions(x.device()).to(at::kFloat) + 1;
      const auto scales =
          at::log1p(at::floor(positions / c_.temperature_floor)) * c_.temperature_scale + 1.0;
      q = (q * scales.view({1, 1, -1, 1})).to(q.scalar_type());
    }
    step.remember(layer_, k, v);
    auto how = step.attention(1.0 / std::sqrt(static_cast<double>(c_.head_dim)));
    how.chunk = c_.chunked[layer_] ? c_.chunk : 0;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  static at::Tensor rotate(const at::Tensor& x, const RopeTables& rope) {
    return Rope::apply_to_pairs(x.to(at::kFloat), rope.first, rope.second).to(x.scalar_type());
  }

  Llama4TextConfig c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj;
};

/// gate_up_proj [E, H, 2 I], gate first, and down_proj [E, I, H]: used as x W, the other way round
/// than in Linear. The router's score multiplies what goes in.
struct Llama4TextExperts : RoutedExperts {
  Llama4TextExperts(const Llama4TextConfig& c, const at::TensorOptions& o)
      : RoutedExperts("Llama4TextExperts", c.experts.count, Weigh::inputs),
        sizes_(c.experts),
        activation_(c.activation) {
    const auto [count, hidden, intermediate] = c.experts;
    own("gate_up_proj", gate_up_proj, at::empty({count, hidden, 2 * intermediate}, o));
    own("down_proj", down_proj, at::empty({count, intermediate, hidden}, o));
  }

  std::vector<nn::TensorPart> parts() const override {
    std::vector<nn::TensorPart> parts;
    const auto half = sizes_.intermediate;
    for (std::int64_t e = 0; e < sizes_.count; ++e) {
      const std::string expert = std::to_string(e) + ".";
      const auto columns = [&](std::int64_t start) {
        return nn::Region{.index = e, .dim = 1, .start = start, .length = half, .transpose = true};
      };
      parts.push_back({"gate_up_proj", expert + "gate_proj.weight", columns(0)});
      parts.push_back({"gate_up_proj", expert + "up_proj.weight", columns(half)});
      parts.push_back(
          {"down_proj", expert + "down_proj.weight", nn::Region{.index = e, .transpose = true}});
    }
    return parts;
  }

  void describe(ModuleSpec& spec) const override {
    RoutedExperts::describe(spec);
    spec.dtype = gate_up_proj.scalar_type();
  }

  at::Tensor run(const at::Tensor& rows, const SortedPairs& pairs,
                 const at::Tensor& /*x*/) override {
    const auto both = grouped_linear(rows, pairs, gate_up_proj.transpose(1, 2));
    const auto half = sizes_.intermediate;
    const auto inner = both.narrow(1, half, half) * activation_(both.narrow(1, 0, half));
    return grouped_linear(inner, pairs, down_proj.transpose(1, 2));
  }

  ExpertSizes sizes_;
  Activation activation_;
  at::Tensor gate_up_proj, down_proj;
};

struct Llama4TextMoe : Unary {
  Llama4TextMoe(const Llama4TextConfig& c, const at::TensorOptions& o)
      : Unary("Llama4TextMoe"),
        top_k_(c.top_k),
        experts(*this, "experts", std::make_shared<Llama4TextExperts>(c, o)),
        router(*this, "router", linear("Llama4Router", c.hidden_size, c.experts.count, false, o)),
        shared_expert(*this, "shared_expert",
                      std::make_shared<GatedMlp>("Llama4TextMLP", c.hidden_size,
                                                 c.intermediate_size, c.activation, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto [logits, ids] = at::topk(router->forward(rows), top_k_, 1);
    const auto scores = at::sigmoid(logits.to(at::kFloat)).to(logits.scalar_type());
    return (shared_expert->forward(rows) + experts->forward(rows, ids, scores)).view(x.sizes());
  }

  std::int64_t top_k_;
  Slot<nn::Experts> experts;
  Slot<Unary> router, shared_expert;
};

std::shared_ptr<Unary> feed_forward_of(const Llama4TextConfig& c, std::size_t layer,
                                       const at::TensorOptions& o) {
  if (c.sparse[layer]) return std::make_shared<Llama4TextMoe>(c, o);
  return std::make_shared<GatedMlp>("Llama4TextMLP", c.hidden_size, c.dense_intermediate,
                                    c.activation, o);
}

struct Llama4TextDecoderLayer : Block {
  Llama4TextDecoderLayer(const Llama4TextConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Llama4TextDecoderLayer"),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<Llama4TextAttention>(c, layer, o)),
        feed_forward(*this, "feed_forward", feed_forward_of(c, layer, o)),
        input_layernorm(*this, "input_layernorm",
                        rms_norm("Llama4TextRMSNorm", c.hidden_size, c.rms_norm_eps, o)),
        post_attention_layernorm(*this, "post_attention_layernorm",
                                 rms_norm("Llama4TextRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    const auto mixed = x + self_attn->forward(input_layernorm->forward(x), step, rope);
    return mixed + feed_forward->forward(post_attention_layernorm->forward(mixed));
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    add_attention_groups(groups, path + "self_attn.", path + "input_layernorm", repeated_values_);
    const std::string block = path + "feed_forward.";
    if (const auto* moe = dynamic_cast<const Llama4TextMoe*>(feed_forward.get().get())) {
      add_mlp_groups(groups, block + "shared_expert.", "");
      add_expert_groups(groups, block + "experts.", *moe->experts);
    } else {
      add_mlp_groups(groups, block, path + "post_attention_layernorm");
    }
  }

  bool repeated_values_;
  Slot<Llama4TextAttention> self_attn;
  Slot<Unary> feed_forward, input_layernorm, post_attention_layernorm;
};

struct Llama4TextModel : Block {
  Llama4TextModel(const Llama4TextConfig& c, const at::TensorOptions& o)
      : Block("Llama4TextModel"),
        rope_(c.rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", rms_norm("Llama4TextRMSNorm", c.hidden_size, c.rms_norm_eps, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Llama4TextDecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  at::Tensor hidden(const Batch& batch) {
    auto x = embed_tokens->forward(batch.input_ids);
    const DecodingStep step(batch);
    const auto rope = step.tables(rope_, at::kFloat, x.device());
    x = through_layers(batch, layers, std::move(x), step, rope);
    return norm->run(x);
  }

  Rope rope_;
  Slot<Unary> embed_tokens;
  SlotList<Llama4TextDecoderLayer> layers;
  Slot<Unary> norm;
};

}  // namespace

std::shared_ptr<Model> make_llama4_text(const Value& given, const at::TensorOptions& options) {
  const Value config = with_defaults(given, kDefaults);
  const Llama4TextConfig c(config);
  return std::make_shared<CausalLm<Llama4TextModel>>("Llama4ForCausalLM", config,
                                                     std::make_shared<Llama4TextModel>(c, options),
                                                     c.hidden_size, c.vocab_size, c.tied, options);
}

std::shared_ptr<nn::Block> sequential_llama4_text_experts(const ModuleSpec& spec,
                                                          const Value& text) {
  const Llama4TextConfig c(text);
  return sequential_gated_experts("SequentialLlama4TextExperts", "Llama4TextMLP", c.experts,
                                  c.activation, RoutedExperts::Weigh::inputs,
                                  at::TensorOptions(at::kMeta).dtype(spec.dtype));
}

}  // namespace graft
