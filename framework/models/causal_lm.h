#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/model.h"
#include "graft/nn/unary.h"
#include "models/decoder_graph.h"
#include "models/leaves.h"

namespace graft {

/// The names of a decoder that calls its body "model" and keeps layers, embedding and norm there:
/// how headless and wrapped checkpoints spell them.
std::vector<CheckpointPrefix> decoder_prefixes();

/// Adds q/k/v and o_proj of the attention at `path`. `norm` makes the input of the first three;
/// empty: it cannot absorb a scale. Repeated values cannot either.
void add_attention_groups(std::vector<InputGroup>& groups, const std::string& path,
                          const std::string& norm, bool repeated_values);
/// Adds gate/up and down_proj of the GatedMlp at `path`.
void add_mlp_groups(std::vector<InputGroup>& groups, const std::string& path,
                    const std::string& norm);

/// A decoder's body "model" and its output head "lm_head". Body has `hidden(batch)`, which gives
/// [B, T, H], and `layers`, a SlotList whose members have `add_input_groups(groups, path)`. If it
/// has `describe_graph(graph)`, its forward is a DecoderGraph where that returns true.
template <class Body>
class CausalLm : public Model, public GraphedDecoder {
 public:
  CausalLm(std::string class_name, const Value& config, std::shared_ptr<Body> body,
           std::int64_t hidden_size, std::int64_t vocab_size, bool tied,
           const at::TensorOptions& options)
      : Model(std::move(class_name), config),
        tied_(tied),
        model(*this, "model", std::move(body)),
        lm_head(*this, "lm_head", linear(hidden_size, vocab_size, false, options)) {}

  Output output() const override { return Output::logits; }
  std::size_t cache_layers() const override { return model->layers.size(); }

  at::Tensor forward(const Batch& batch) override {
    auto x = model->hidden(batch);
    if (batch.last_logits_only) x = x.narrow(1, x.size(1) - 1, 1).contiguous();
    return finish(lm_head->run(x));
  }

  std::optional<DecoderGraph> decoder_graph() override {
    DecoderGraph graph;
    graph.head = &*lm_head;
    if constexpr (requires { model->describe_graph(graph); })
      if (model->describe_graph(graph)) return graph;
    return std::nullopt;
  }

  std::vector<TiedTensor> tied_tensors() const override {
    if (!tied_) return {};
    return {{"model.embed_tokens.weight", "lm_head.weight"}};
  }

  std::vector<CheckpointPrefix> checkpoint_prefixes() const override { return decoder_prefixes(); }

  std::vector<InputGroup> input_groups() const override {
    std::vector<InputGroup> groups;
    for (std::size_t i = 0; i < model->layers.size(); ++i)
      model->layers[i].add_input_groups(groups, "model.layers." + std::to_string(i) + ".");
    return groups;
  }

 protected:
  /// What a family does to its logits.
  virtual at::Tensor finish(const at::Tensor& logits) const { return logits; }

 private:
  bool tied_;

 public:
  nn::Slot<Body> model;
  nn::Slot<nn::Unary> lm_head;
};

}  // namespace graft
