#include <ATen/ops/arange.h>
#include <ATen/ops/zeros_like.h>

#include "graft/error.h"
#include "graft/nn/layers.h"
#include "models/attention.h"
#include "models/config_fields.h"
#include "models/model_table.h"
#include "models/through_layers.h"

namespace graft {
namespace {

using nn::Block;
using nn::Slot;
using nn::SlotList;
using nn::Unary;

struct BertConfig {
  std::int64_t vocab_size, hidden_size, intermediate_size, layers, heads, positions, types;
  double layer_norm_eps;
  Activation activation;

  explicit BertConfig(const Value& config)
      : vocab_size(required_size(config, "vocab_size")),
        hidden_size(required_size(config, "hidden_size")),
        intermediate_size(required_size(config, "intermediate_size")),
        layers(required_count(config, "num_hidden_layers")),
        heads(required_size(config, "num_attention_heads")),
        positions(required_size(config, "max_position_embeddings")),
        types(optional_size(config, "type_vocab_size", 2)),
        layer_norm_eps(config.get_double("layer_norm_eps", 1e-12)),
        activation(activation_named(config.get_string("hidden_act", "gelu"))) {
    require_multiple("hidden_size", hidden_size, "num_attention_heads", heads);
    if (const auto kind = config.get_string("position_embedding_type", "absolute");
        kind != "absolute")
      throw Error(ErrorKind::model, "unsupported position_embedding_type")
          .expected("absolute")
          .found(quote(kind));
  }
};

std::shared_ptr<Unary> linear(std::int64_t in, std::int64_t out, const at::TensorOptions& options) {
  return std::make_shared<nn::Linear>(in, out, true, options);
}

std::shared_ptr<Unary> norm(const BertConfig& c, const at::TensorOptions& options) {
  return std::make_shared<nn::LayerNorm>(c.hidden_size, c.layer_norm_eps, options);
}

struct BertEmbeddings : Block {
  BertEmbeddings(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertEmbeddings"),
        positions_(c.positions),
        word_embeddings(*this, "word_embeddings",
                        std::make_shared<nn::Embedding>(c.vocab_size, c.hidden_size, o)),
        position_embeddings(*this, "position_embeddings",
                            std::make_shared<nn::Embedding>(c.positions, c.hidden_size, o)),
        token_type_embeddings(*this, "token_type_embeddings",
                              std::make_shared<nn::Embedding>(c.types, c.hidden_size, o)),
        layer_norm(*this, "LayerNorm", norm(c, o)) {}

  at::Tensor forward(const at::Tensor& ids) {
    if (ids.size(1) > positions_)
      throw Error(ErrorKind::usage, "the text is longer than the model's positions")
          .expected("at most " + std::to_string(positions_) + " tokens")
          .found(std::to_string(ids.size(1)));
    const auto positions = at::arange(ids.size(1), ids.options());
    const auto words = word_embeddings->forward(ids);
    return layer_norm->run(words +
                           token_type_embeddings->forward(at::zeros_like(ids)).to(words.device()) +
                           position_embeddings->forward(positions).to(words.device()));
  }

  std::int64_t positions_;
  Slot<Unary> word_embeddings, position_embeddings, token_type_embeddings, layer_norm;
};

struct BertSelfAttention : Block {
  BertSelfAttention(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertSelfAttention"),
        heads_(c.heads),
        query(*this, "query", linear(c.hidden_size, c.hidden_size, o)),
        key(*this, "key", linear(c.hidden_size, c.hidden_size, o)),
        value(*this, "value", linear(c.hidden_size, c.hidden_size, o)) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& padding) {
    const auto head_dim = x.size(2) / heads_;
    const auto heads = [&](const at::Tensor& y) { return split_heads(y, heads_, head_dim); };
    return join_heads(full_attention(heads(query->forward(x)), heads(key->forward(x)),
                                     heads(value->forward(x)),
                                     1.0 / std::sqrt(static_cast<double>(head_dim)), padding));
  }

  std::int64_t heads_;
  Slot<Unary> query, key, value;
};

/// Projection, residual and norm: BertSelfOutput and BertOutput.
struct BertResidual : Block {
  BertResidual(std::string class_name, const BertConfig& c, std::int64_t in,
               const at::TensorOptions& o)
      : Block(std::move(class_name)),
        dense(*this, "dense", linear(in, c.hidden_size, o)),
        layer_norm(*this, "LayerNorm", norm(c, o)) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual) {
    return layer_norm->forward(dense->forward(x) + residual);
  }

  Slot<Unary> dense, layer_norm;
};

struct BertAttention : Block {
  BertAttention(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertAttention"),
        self(*this, "self", std::make_shared<BertSelfAttention>(c, o)),
        output(*this, "output",
               std::make_shared<BertResidual>("BertSelfOutput", c, c.hidden_size, o)) {}

  Slot<BertSelfAttention> self;
  Slot<BertResidual> output;
};

struct BertIntermediate : Block {
  BertIntermediate(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertIntermediate"),
        dense(*this, "dense", linear(c.hidden_size, c.intermediate_size, o)) {}

  Slot<Unary> dense;
};

struct BertLayer : Block {
  BertLayer(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertLayer"),
        activation_(c.activation),
        attention(*this, "attention", std::make_shared<BertAttention>(c, o)),
        intermediate(*this, "intermediate", std::make_shared<BertIntermediate>(c, o)),
        output(*this, "output",
               std::make_shared<BertResidual>("BertOutput", c, c.intermediate_size, o)) {}

  at::Tensor forward(const at::Tensor& x, const at::Tensor& padding) {
    const auto mixed = attention->output->forward(attention->self->forward(x, padding), x);
    return output->forward(activation_(intermediate->dense->forward(mixed)), mixed);
  }

  Activation activation_;
  Slot<BertAttention> attention;
  Slot<BertIntermediate> intermediate;
  Slot<BertResidual> output;
};

struct BertEncoder : Block {
  BertEncoder(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertEncoder"), layer(*this, "layer") {
    for (std::int64_t i = 0; i < c.layers; ++i) layer.append(std::make_shared<BertLayer>(c, o));
  }

  SlotList<BertLayer> layer;
};

/// Present in checkpoints; hidden states do not pass through it.
struct BertPooler : Block {
  BertPooler(const BertConfig& c, const at::TensorOptions& o)
      : Block("BertPooler"), dense(*this, "dense", linear(c.hidden_size, c.hidden_size, o)) {}

  Slot<Unary> dense;
};

struct BertModel : Model {
  BertModel(const Value& config, const BertConfig& c, const at::TensorOptions& o)
      : Model("BertModel", config),
        embeddings(*this, "embeddings", std::make_shared<BertEmbeddings>(c, o)),
        encoder(*this, "encoder", std::make_shared<BertEncoder>(c, o)),
        pooler(*this, "pooler", std::make_shared<BertPooler>(c, o)) {}

  Output output() const override { return Output::last_hidden_state; }
  std::size_t cache_layers() const override { return 0; }
  std::vector<CheckpointPrefix> checkpoint_prefixes() const override { return {{"bert.", ""}}; }
  std::vector<CheckpointRename> checkpoint_renames() const override {
    return {{"LayerNorm.gamma", "LayerNorm.weight"}, {"LayerNorm.beta", "LayerNorm.bias"}};
  }
  std::vector<UnusedTensors> unused_tensors() const override {
    return {{"embeddings.position_ids", "computed", false},
            {"cls.*", "a head that hidden states do not pass", true},
            {"classifier.*", "a head that hidden states do not pass", true},
            {"qa_outputs.*", "a head that hidden states do not pass", true}};
  }

  at::Tensor forward(const Batch& batch) override {
    auto x = embeddings->forward(batch.input_ids);
    const auto padding =
        batch.attention_mask.defined() ? batch.attention_mask.to(at::kBool) : at::Tensor();
    x = through_layers(batch, encoder->layer, std::move(x), padding);
    return x;
  }

  std::vector<InputGroup> input_groups() const override {
    std::vector<InputGroup> groups;
    for (std::size_t i = 0; i < encoder->layer.size(); ++i) {
      const std::string layer = "encoder.layer." + std::to_string(i) + ".";
      const std::string self = layer + "attention.self.";
      // The norms' outputs also feed the residual, so they cannot absorb a scale.
      groups.push_back({{self + "query", self + "key", self + "value"}, ""});
      groups.push_back({{layer + "attention.output.dense"}, self + "value"});
      groups.push_back({{layer + "intermediate.dense"}, ""});
      groups.push_back({{layer + "output.dense"}, ""});
    }
    return groups;
  }

  Slot<BertEmbeddings> embeddings;
  Slot<BertEncoder> encoder;
  Slot<BertPooler> pooler;
};

}  // namespace

std::shared_ptr<Model> make_bert(const Value& config, const at::TensorOptions& options) {
  return std::make_shared<BertModel>(config, BertConfig(config), options);
}

}  // namespace graft
