#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "graft/error.h"
#include "graft/nn/product.h"
#include "models/attention.h"
#include "models/config_fields.h"
#include "models/decoding_step.h"
#include "models/leaves.h"
#include "models/model_table.h"
#include "models/through_layers.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct Gpt2Config {
  std::int64_t vocab_size, hidden_size, intermediate_size, layers, heads, positions;
  double layer_norm_epsilon;
  bool scale_weights, scale_by_layer, tied;
  Activation activation;

  explicit Gpt2Config(const Value& config)
      : vocab_size(required_size(config, "vocab_size")),
        hidden_size(required_size(config, "n_embd")),
        intermediate_size(optional_size(config, "n_inner", 4 * hidden_size)),
        layers(required_count(config, "n_layer")),
        heads(required_size(config, "n_head")),
        positions(optional_size(config, "n_positions", optional_size(config, "n_ctx", 1024))),
        layer_norm_epsilon(config.get_double("layer_norm_epsilon", 1e-5)),
        scale_weights(config.get_bool("scale_attn_weights", true)),
        scale_by_layer(config.get_bool("scale_attn_by_inverse_layer_idx", false)),
        tied(config.get_bool("tie_word_embeddings", true)),
        activation(activation_named(config.get_string("activation_function", "gelu_new"))) {
    require_multiple("n_embd", hidden_size, "n_head", heads);
    refuse_field(config, "add_cross_attention");
  }
};

/// y = x W + b with `weight` [in_features, out_features]: the other way round than Linear.
struct Conv1D : Unary {
  Conv1D(std::int64_t in, std::int64_t out, const at::TensorOptions& o) : Unary("Conv1D") {
    own("weight", weight, at::empty({in, out}, o));
    own("bias", bias, at::empty({out}, o));
  }

  at::Tensor forward(const at::Tensor& x) override {
    return nn::linear(x, weight.t(), bias);
  }

  void describe(ModuleSpec& spec) const override {
    Unary::describe(spec);
    spec.in_features = weight.size(0);
    spec.out_features = weight.size(1);
    spec.bias = true;
    spec.input_major = true;
    spec.dtype = weight.scalar_type();
  }

  at::Tensor weight, bias;
};

struct Gpt2Attention : Block {
  Gpt2Attention(const Gpt2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("GPT2Attention"),
        heads_(c.heads),
        layer_(layer),
        c_attn(*this, "c_attn", std::make_shared<Conv1D>(c.hidden_size, 3 * c.hidden_size, o)),
        c_proj(*this, "c_proj", std::make_shared<Conv1D>(c.hidden_size, c.hidden_size, o)) {
    if (c.scale_weights) scale_ = 1 / std::sqrt(static_cast<double>(c.hidden_size / c.heads));
    if (c.scale_by_layer) scale_ /= static_cast<double>(layer + 1);
  }

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step) {
    const auto all = split_heads(c_attn->forward(x), 3 * heads_, x.size(2) / heads_);
    const auto q = all.narrow(1, 0, heads_);
    auto k = all.narrow(1, heads_, heads_), v = all.narrow(1, 2 * heads_, heads_);
    step.remember(layer_, k, v);
    return c_proj->forward(join_heads(causal_attention(q, k, v, step.attention(scale_))));
  }

  std::int64_t heads_;
  std::size_t layer_;
  double scale_ = 1;
  Slot<Unary> c_attn, c_proj;
};

struct Gpt2Mlp : Unary {
  Gpt2Mlp(const Gpt2Config& c, const at::TensorOptions& o)
      : Unary("GPT2MLP"),
        activation_(c.activation),
        c_fc(*this, "c_fc", std::make_shared<Conv1D>(c.hidden_size, c.intermediate_size, o)),
        c_proj(*this, "c_proj", std::make_shared<Conv1D>(c.intermediate_size, c.hidden_size, o)) {}

  at::Tensor forward(const at::Tensor& x) override {
    const auto active = activation_(c_fc->forward(x));
    return c_proj->forward(active);
  }

  Activation activation_;
  Slot<Unary> c_fc, c_proj;
};

struct Gpt2Block : Block {
  Gpt2Block(const Gpt2Config& c, std::size_t layer, const at::TensorOptions& o)
      : Block("GPT2Block"),
        ln_1(*this, "ln_1", layer_norm(c.hidden_size, c.layer_norm_epsilon, o)),
        attn(*this, "attn", std::make_shared<Gpt2Attention>(c, layer, o)),
        ln_2(*this, "ln_2", layer_norm(c.hidden_size, c.layer_norm_epsilon, o)),
        mlp(*this, "mlp", std::make_shared<Gpt2Mlp>(c, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step) {
    const auto mixed = x + attn->forward(ln_1->forward(x), step);
    return mixed + mlp->forward(ln_2->forward(mixed));
  }

  Slot<Unary> ln_1;
  Slot<Gpt2Attention> attn;
  Slot<Unary> ln_2, mlp;
};

struct Gpt2Model : Block {
  Gpt2Model(const Gpt2Config& c, const at::TensorOptions& o)
      : Block("GPT2Model"),
        positions_(c.positions),
        wte(*this, "wte", embedding(c.vocab_size, c.hidden_size, o)),
        wpe(*this, "wpe", embedding(c.positions, c.hidden_size, o)),
        h(*this, "h"),
        ln_f(*this, "ln_f", layer_norm(c.hidden_size, c.layer_norm_epsilon, o)) {
    for (std::int64_t i = 0; i < c.layers; ++i)
      h.append(std::make_shared<Gpt2Block>(c, static_cast<std::size_t>(i), o));
  }

  std::int64_t positions() const { return positions_; }

  at::Tensor hidden(const Batch& batch) {
    const DecodingStep step(batch);
    const auto end = step.start + step.count;
    if (end > positions_)
      throw Error(ErrorKind::usage, "the text is longer than the model's positions")
          .expected("at most " + std::to_string(positions_) + " tokens")
          .found(std::to_string(end));
    auto x = wte->forward(batch.input_ids);
    x = x + wpe->forward(step.positions(batch.input_ids.device())).to(x.device());
    x = through_layers(batch, h, std::move(x), step);
    return ln_f->run(x);
  }

  std::int64_t positions_;
  Slot<Unary> wte, wpe;
  SlotList<Gpt2Block> h;
  Slot<Unary> ln_f;
};

struct Gpt2LmHeadModel : Model {
  Gpt2LmHeadModel(const Value& config, const Gpt2Config& c, const at::TensorOptions& o)
      : Model("GPT2LMHeadModel", config),
        tied_(c.tied),
        transformer(*this, "transformer", std::make_shared<Gpt2Model>(c, o)),
        lm_head(*this, "lm_head", linear(c.hidden_size, c.vocab_size, false, o)) {}

  Output output() const override { return Output::logits; }
  std::optional<std::int64_t> positions() const override { return transformer->positions(); }
  std::size_t cache_layers() const override { return transformer->h.size(); }

  at::Tensor forward(const Batch& batch) override {
    auto x = transformer->hidden(batch);
    if (batch.last_logits_only) x = x.narrow(1, x.size(1) - 1, 1).contiguous();
    return lm_head->run(x);
  }

  std::vector<TiedTensor> tied_tensors() const override {
    if (!tied_) return {};
    return {{"transformer.wte.weight", "lm_head.weight"}};
  }

  std::vector<CheckpointPrefix> checkpoint_prefixes() const override {
    return {{"h.", "transformer.h."},
            {"wte.", "transformer.wte."},
            {"wpe.", "transformer.wpe."},
            {"ln_f.", "transformer.ln_f."}};
  }

  std::vector<UnusedTensors> unused_tensors() const override {
    return {{"*.attn.bias", "the causal mask, which is computed", false},
            {"*.attn.masked_bias", "the causal mask, which is computed", false}};
  }

  std::vector<InputGroup> input_groups() const override {
    std::vector<InputGroup> groups;
    for (std::size_t i = 0; i < transformer->h.size(); ++i) {
      const std::string layer = "transformer.h." + std::to_string(i) + ".";
      groups.push_back({{layer + "attn.c_attn"}, layer + "ln_1"});
      groups.push_back({{layer + "attn.c_proj"}, ""});
      groups.push_back({{layer + "mlp.c_fc"}, layer + "ln_2"});
      groups.push_back({{layer + "mlp.c_proj"}, ""});
    }
    return groups;
  }

  bool tied_;
  Slot<Gpt2Model> transformer;
  Slot<Unary> lm_head;
};

}  // namespace

std::shared_ptr<Model> make_gpt2(const Value& config, const at::TensorOptions& options) {
  return std::make_shared<Gpt2LmHeadModel>(config, Gpt2Config(config), options);
}

}  // namespace graft
