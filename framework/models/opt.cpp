#include <ATen/TensorOperators.h>
#include <ATen/ops/cumsum.h>

#include <cmath>
#include <optional>

#include "graft/error.h"
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

constexpr double kEps = 1e-5;                // LayerNorm's own; the config has no field
constexpr std::int64_t kPositionOffset = 2;  // rows that the position table has before position 0

struct OptConfig {
  std::int64_t vocab_size, hidden_size, ffn_dim, layers, heads, positions, embedding_width;
  bool bias, norm_before, final_norm, tied;
  Activation activation;

  explicit OptConfig(const Value& config)
      : vocab_size(required_size(config, "vocab_size")),
        hidden_size(required_size(config, "hidden_size")),
        ffn_dim(required_size(config, "ffn_dim")),
        layers(required_count(config, "num_hidden_layers")),
        heads(required_size(config, "num_attention_heads")),
        positions(required_size(config, "max_position_embeddings")),
        embedding_width(optional_size(config, "word_embed_proj_dim", hidden_size)),
        bias(config.get_bool("enable_bias", true)),
        norm_before(config.get_bool("do_layer_norm_before", true)),
        final_norm(norm_before && !config.get_bool("_remove_final_layer_norm", false)),
        tied(config.get_bool("tie_word_embeddings", true)),
        activation(activation_named(config.get_string("activation_function", "relu"))) {
    require_multiple("hidden_size", hidden_size, "num_attention_heads", heads);
    if (!config.get_bool("layer_norm_elementwise_affine", true))
      throw Error(ErrorKind::model, "norms without weights are not supported")
          .at("field 'layer_norm_elementwise_affine'")
          .expected("true");
  }
};

struct OptAttention : Block {
  OptAttention(const OptConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("OPTAttention"),
        heads_(c.heads),
        layer_(layer),
        k_proj(*this, "k_proj", linear(c.hidden_size, c.hidden_size, c.bias, o)),
        v_proj(*this, "v_proj", linear(c.hidden_size, c.hidden_size, c.bias, o)),
        q_proj(*this, "q_proj", linear(c.hidden_size, c.hidden_size, c.bias, o)),
        out_proj(*this, "out_proj", linear(c.hidden_size, c.hidden_size, c.bias, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step) {
    const auto head_dim = x.size(2) / heads_;
    const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
    const auto q = split_heads(q_proj->forward(x) * scale, heads_, head_dim);
    auto k = split_heads(k_proj->forward(x), heads_, head_dim);
    auto v = split_heads(v_proj->forward(x), heads_, head_dim);
    step.remember(layer_, k, v);
    return out_proj->forward(join_heads(causal_attention(q, k, v, step.attention(1.0))));
  }

  std::int64_t heads_;
  std::size_t layer_;
  Slot<Unary> k_proj, v_proj, q_proj, out_proj;
};

struct OptDecoderLayer : Block {
  OptDecoderLayer(const OptConfig& c, std::size_t layer, const at::TensorOptions& o)
      : Block("OPTDecoderLayer"),
        norm_before_(c.norm_before),
        activation_(c.activation),
        self_attn(*this, "self_attn", std::make_shared<OptAttention>(c, layer, o)),
        self_attn_layer_norm(*this, "self_attn_layer_norm", layer_norm(c.hidden_size, kEps, o)),
        fc1(*this, "fc1", linear(c.hidden_size, c.ffn_dim, c.bias, o)),
        fc2(*this, "fc2", linear(c.ffn_dim, c.hidden_size, c.bias, o)),
        final_layer_norm(*this, "final_layer_norm", layer_norm(c.hidden_size, kEps, o)) {}

  at::Tensor forward(const at::Tensor& x, const DecodingStep& step) {
    const auto before = [&](Slot<Unary>& norm, const at::Tensor& y) {
      return norm_before_ ? norm->forward(y) : y;
    };
    const auto after = [&](Slot<Unary>& norm, const at::Tensor& y) {
      return norm_before_ ? y : norm->forward(y);
    };
    const auto attended = self_attn->forward(before(self_attn_layer_norm, x), step);
    const auto mixed = after(self_attn_layer_norm, x + attended);
    const auto active = activation_(fc1->forward(before(final_layer_norm, mixed)));
    const auto fed = fc2->forward(active);
    return after(final_layer_norm, mixed + fed);
  }

  bool norm_before_;
  Activation activation_;
  Slot<OptAttention> self_attn;
  Slot<Unary> self_attn_layer_norm, fc1, fc2, final_layer_norm;
};

struct OptDecoder : Block {
  OptDecoder(const OptConfig& c, const at::TensorOptions& o)
      : Block("OPTDecoder"),
        positions_(c.positions),
        embed_tokens(*this, "embed_tokens", embedding(c.vocab_size, c.embedding_width, o)),
        embed_positions(*this, "embed_positions",
                        embedding(c.positions + kPositionOffset, c.hidden_size, o)),
        layers(*this, "layers") {
    if (c.embedding_width != c.hidden_size) {
      project_out.emplace(*this, "project_out", linear(c.hidden_size, c.embedding_width, false, o));
      project_in.emplace(*this, "project_in", linear(c.embedding_width, c.hidden_size, false, o));
    }
    if (c.final_norm)
      final_layer_norm.emplace(*this, "final_layer_norm", layer_norm(c.hidden_size, kEps, o));
    for (std::int64_t i = 0; i < c.layers; ++i)
      layers.append(std::make_shared<OptDecoderLayer>(c, static_cast<std::size_t>(i), o));
  }

  std::int64_t positions() const { return positions_; }

  at::Tensor hidden(const Batch& batch) {
    const DecodingStep step(batch);
    const auto end = step.start + step.count;
    if (end > positions_)
      throw Error(ErrorKind::usage, "the text is longer than the model's positions")
          .expected("at most " + std::to_string(positions_) + " tokens")
          .found(std::to_string(end));
    auto x = embed_tokens->forward(batch.input_ids);
    if (project_in) x = (*project_in)->run(x);
    auto positions = step.positions(batch.input_ids.device());
    if (step.padding.defined()) {
      const auto real = step.padding.to(at::kLong);
      positions = (at::cumsum(real, 1) * real - 1).narrow(1, real.size(1) - step.count, step.count);
    }
    x = x + embed_positions->forward(positions + kPositionOffset).to(x.device());
    x = through_layers(batch, layers, std::move(x), step);
    if (final_layer_norm) x = (*final_layer_norm)->run(x);
    if (project_out) x = (*project_out)->run(x);
    return x;
  }

  std::int64_t positions_;
  Slot<Unary> embed_tokens, embed_positions;
  std::optional<Slot<Unary>> project_out, project_in, final_layer_norm;
  SlotList<OptDecoderLayer> layers;
};

struct OptModel : Block {
  OptModel(const OptConfig& c, const at::TensorOptions& o)
      : Block("OPTModel"), decoder(*this, "decoder", std::make_shared<OptDecoder>(c, o)) {}

  Slot<OptDecoder> decoder;
};

struct OptForCausalLM : Model {
  OptForCausalLM(const Value& config, const OptConfig& c, const at::TensorOptions& o)
      : Model("OPTForCausalLM", config),
        c_(c),
        model(*this, "model", std::make_shared<OptModel>(c, o)),
        lm_head(*this, "lm_head", linear(c.embedding_width, c.vocab_size, false, o)) {}

  Output output() const override { return Output::logits; }
  std::optional<std::int64_t> positions() const override { return model->decoder->positions(); }
  std::size_t cache_layers() const override { return model->decoder->layers.size(); }

  at::Tensor forward(const Batch& batch) override {
    auto x = model->decoder->hidden(batch);
    if (batch.last_logits_only) x = x.narrow(1, x.size(1) - 1, 1).contiguous();
    return lm_head->run(x);
  }

  std::vector<TiedTensor> tied_tensors() const override {
    if (!c_.tied) return {};
    return {{"model.decoder.embed_tokens.weight", "lm_head.weight"}};
  }

  std::vector<CheckpointPrefix> checkpoint_prefixes() const override {
    return {{"decoder.", "model.decoder."}};
  }

  std::vector<InputGroup> input_groups() const override {
    std::vector<InputGroup> groups;
    for (std::size_t i = 0; i < model->decoder->layers.size(); ++i) {
      const std::string layer = "model.decoder.layers." + std::to_string(i) + ".";
      const std::string attention = layer + "self_attn.";
      // A norm after the block also feeds the residual, and then absorbs no scale.
      const auto norm = [&](const char* name) { return c_.norm_before ? layer + name : ""; };
      groups.push_back({{attention + "k_proj", attention + "v_proj", attention + "q_proj"},
                        norm("self_attn_layer_norm")});
      groups.push_back({{attention + "out_proj"}, attention + "v_proj"});
      groups.push_back({{layer + "fc1"}, norm("final_layer_norm")});
      groups.push_back({{layer + "fc2"}, ""});
    }
    return groups;
  }

  OptConfig c_;
  Slot<OptModel> model;
  Slot<Unary> lm_head;
};

}  // namespace

std::shared_ptr<Model> make_opt(const Value& config, const at::TensorOptions& options) {
  return std::make_shared<OptForCausalLM>(config, OptConfig(config), options);
}

}  // namespace graft
