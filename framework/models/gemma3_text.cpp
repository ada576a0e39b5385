#include <ATen/TensorOperators.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tanh.h>

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

constexpr const char* kDefaults =
    R"({"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "sliding_window": 4096})";

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Gemma3Config : DecoderSizes {
  std::int64_t window;
  std::vector<bool> windowed;  // by layer
  double scale, attention_cap, logit_cap;
  Rope rope, local_rope;

  explicit Gemma3Config(const Value& config)
      : DecoderSizes(config, /*default_eps=*/1e-6, /*tied_by_default=*/true),
        window(size_or_none(config, "sliding_window")),
        windowed(layers_of_type(config, "sliding_attention", layers, windowed_by_default)),
        scale(1 /
              std::sqrt(static_cast<double>(optional_size(config, "query_pre_attn_scalar", 256)))),
        attention_cap(number_or_none(config, "attn_logit_softcapping")),
        logit_cap(number_or_none(config, "final_logit_softcapping")),
        rope(config, rope_of(config, "full_attention"), head_dim),
        local_rope(config, rope_of(config, "sliding_attention"), head_dim) {
    refuse_field(config, "use_bidirectional_attention");
    // The config class reads hidden_activation alone; hidden_act is there for older programs.
    activation = activation_named(config.get_string("hidden_activation", "gelu_pytorch_tanh"));
  }

  static bool windowed_by_default(std::int64_t layer, const Value& config) {
    return (layer + 1) % optional_size(config, "sliding_window_pattern", 6) != 0;
  }

  /// Transformers 5 keeps one set of parameters a layer type; before, rope_theta and rope_scaling
  /// held for full layers, rope_local_base_freq for windowed ones.
  static Value rope_of(const Value& config, const std::string& type) {
    if (const Value* all = config.find("rope_parameters"))
      if (const Value* own = all->find(type)) return *own;
    const bool full = type == "full_attention";
    const Value* scaling = full ? config.find("rope_scaling") : nullptr;
    Value out = scaling ? *scaling : Value(Value::Object{});
    if (!out.find("rope_theta"))
      out.set("rope_theta", full ? config.get_double("rope_theta", 1e6)
                                 : config.get_double("rope_local_base_freq", 1e4));
    return out;
  }

  std::shared_ptr<Unary> norm(std::int64_t width, const at::TensorOptions& o) const {
    return wide_rms_norm("Gemma3RMSNorm", width, rms_norm_eps, /*offset=*/1, o);
  }
};

struct Gemma3Attention : Block {
  Gemma3Attention(const Gemma3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Gemma3Attention"),
        c_(c),
        layer_(layer),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.heads * c.head_dim, c.attention_bias, o)),
        k_proj(*this, "k_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        v_proj(*this, "v_proj",
               linear(c.hidden_size, c.kv_heads * c.head_dim, c.attention_bias, o)),
        o_proj(*this, "o_proj", linear(c.heads * c.head_dim, c.hidden_size, c.attention_bias, o)),
        q_norm(*this, "q_norm", c.norm(c.head_dim, o)),
        k_norm(*this, "k_norm", c.norm(c.head_dim, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& rope) {
    auto q = split_heads(q_proj->forward(x), c_.heads, c_.head_dim);
    auto k = split_heads(k_proj->forward(x), c_.kv_heads, c_.head_dim);
    auto v = split_heads(v_proj->forward(x), c_.kv_heads, c_.head_dim);
    q = Rope::apply(q_norm->forward(q), rope.first, rope.second);
    k = Rope::apply(k_norm->forward(k), rope.first, rope.second);
    step.remember(layer_, k, v);
    auto how = step.attention(c_.scale);
    how.window = c_.windowed[layer_] ? c_.window : 0;
    how.softcap = c_.attention_cap;
    return o_proj->forward(join_heads(causal_attention(q, k, v, how)));
  }

  Gemma3Config c_;
  std::size_t layer_;
  Slot<Unary> q_proj, k_proj, v_proj, o_proj, q_norm, k_norm;
};

struct Gemma3DecoderLayer : Block {
  Gemma3DecoderLayer(const Gemma3Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("Gemma3DecoderLayer"),
        windowed_(c.windowed[layer]),
        repeated_values_(c.heads != c.kv_heads),
        self_attn(*this, "self_attn", std::make_shared<Gemma3Attention>(c, layer, o)),
        mlp(*this, "mlp",
            std::make_shared<GatedMlp>("Gemma3MLP", c.hidden_size, c.intermediate_size,
                                       c.activation, o)),
        input_layernorm(*this, "input_layernorm", c.norm(c.hidden_size, o)),
        post_attention_layernorm(*this, "post_attention_layernorm", c.norm(c.hidden_size, o)),
        pre_feedforward_layernorm(*this, "pre_feedforward_layernorm", c.norm(c.hidden_size, o)),
        post_feedforward_layernorm(*this, "post_feedforward_layernorm", c.norm(c.hidden_size, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step, const RopeTables& full,
                     const RopeTables& local) {
    const auto attended =
        self_attn->forward(input_layernorm->forward(x), step, windowed_ ? local : full);
    const auto mixed = x + post_attention_layernorm->forward(attended);
    const auto fed = mlp->forward(pre_feedforward_layernorm->forward(mixed));
    return mixed + post_feedforward_layernorm->forward(fed);
  }

  void add_input_groups(std::vector<InputGroup>& groups, const std::string& path) const {
    // These norms multiply by 1 + weight, which is not what a scale divides.
    add_attention_groups(groups, path + "self_attn.", "", repeated_values_);
    add_mlp_groups(groups, path + "mlp.", "");
  }

  bool windowed_, repeated_values_;
  Slot<Gemma3Attention> self_attn;
  Slot<Unary> mlp, input_layernorm, post_attention_layernorm, pre_feedforward_layernorm,
      post_feedforward_layernorm;
};

struct Gemma3TextModel : Block {
  Gemma3TextModel(const Gemma3Config& c, const at::TensorOptions& o)
      : Block("Gemma3TextModel"),
        rope_(c.rope),
        local_rope_(c.local_rope),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.hidden_size, o)),
        layers(*this, "layers"),
        norm(*this, "norm", c.norm(c.hidden_size, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<Gemma3DecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  at::Tensor hidden(const Batch& batch) {
    auto x = embed_tokens->forward(batch.input_ids);
    x = x * at::scalar_tensor(std::sqrt(static_cast<double>(x.size(2))), x.options());
    const DecodingStep step(batch);
    const auto full = step.tables(rope_, x.scalar_type(), x.device());
    const auto local = step.tables(local_rope_, x.scalar_type(), x.device());
    x = through_layers(batch, layers, std::move(x), step, full, local);
    return norm->run(x);
  }

  Rope rope_, local_rope_;
  Slot<Unary> embed_tokens;
  SlotList<Gemma3DecoderLayer> layers;
  Slot<Unary> norm;
};

struct Gemma3ForCausalLM : CausalLm<Gemma3TextModel> {
  Gemma3ForCausalLM(const Value& config, const Gemma3Config& c, const at::TensorOptions& o)
      : CausalLm("Gemma3ForCausalLM", config, std::make_shared<Gemma3TextModel>(c, o),
                 c.hidden_size, c.vocab_size, c.tied, o),
        cap_(c.logit_cap) {}

  at::Tensor finish(const at::Tensor& logits) const override {
    return cap_ > 0 ? at::tanh(logits / cap_) * cap_ : logits;
  }

  double cap_;
};

}  // namespace

std::shared_ptr<Model> make_gemma3_text(const Value& given, const at::TensorOptions& options) {
  const Value config = with_defaults(given, kDefaults);
  return std::make_shared<Gemma3ForCausalLM>(config, Gemma3Config(config), options);
}

}  // namespace graft
