#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "graft/nn/unary.h"
#include "models/config_fields.h"
#include "models/rope.h"

namespace graft {

/// One layer: x += o(attention(q, k, v of input_norm(x))); x += down(act(gate(n)) * up(n)) with n =
/// post_norm(x). Heads are rotated after their norms. nullptr: there is none.
struct DecoderLayerGraph {
  nn::Unary *input_norm = nullptr, *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr;
  nn::Unary *q_norm = nullptr, *k_norm = nullptr;  ///< of each head
  nn::Unary *post_norm = nullptr, *gate = nullptr, *up = nullptr, *down = nullptr;
  std::int64_t window = 0;  ///< its own key and those before it that a query sees; 0: all
};

/// The forward pass of a decoder of Llama's kind as data: what runs it without LibTorch follows
/// this. Borrowed from the model; good until a child of it is replaced.
struct DecoderGraph {
  std::int64_t hidden_size = 0, heads = 0, kv_heads = 0, head_dim = 0;
  double rms_norm_eps = 0;
  Activation activation = nullptr;
  const Rope* rope = nullptr;
  nn::Unary *embedding = nullptr, *norm = nullptr, *head = nullptr;
  std::vector<DecoderLayerGraph> layers;

  /// The fields that every family calls the same.
  template <class Config>
  void take_sizes(const Config& c) {
    hidden_size = c.hidden_size;
    heads = c.heads;
    kv_heads = c.kv_heads;
    head_dim = c.head_dim;
    rms_norm_eps = c.rms_norm_eps;
    activation = c.activation;
  }

  /// Adds a layer whose parts have the usual names, and returns it.
  template <class Attention, class Mlp>
  DecoderLayerGraph& add_layer(Attention& attention, Mlp& mlp, nn::Unary& input_norm,
                               nn::Unary& post_norm) {
    DecoderLayerGraph layer;
    layer.input_norm = &input_norm;
    layer.q = &*attention.q_proj;
    layer.k = &*attention.k_proj;
    layer.v = &*attention.v_proj;
    layer.o = &*attention.o_proj;
    layer.post_norm = &post_norm;
    layer.gate = &*mlp.gate_proj;
    layer.up = &*mlp.up_proj;
    layer.down = &*mlp.down_proj;
    return layers.emplace_back(layer);
  }
};

/// What a model is beside Model when its forward is a DecoderGraph.
class GraphedDecoder {
 public:
  virtual ~GraphedDecoder() = default;
  /// std::nullopt when a part was replaced by something of another shape.
  virtual std::optional<DecoderGraph> decoder_graph() = 0;
};

}  // namespace graft
