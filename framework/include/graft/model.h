#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graft/nn/block.h"
#include "graft/value.h"

namespace graft {

class Model;
class Rope;

/// The model that `config` ("model_type"; of a multimodal one, that of its text_config) describes,
/// every tensor on `options.device()` (kMeta for a skeleton that takes no memory) in
/// `options.dtype()`. Throws Error(model): unknown model_type, missing or impossible fields.
GRAFT_API std::shared_ptr<Model> build_model(const Value& config, const at::TensorOptions& options);

/// Keys and values of the tokens seen so far, one entry a decoder layer. Grows as needed, or is
/// fixed. Belongs to one sequence (or one batch of equally long ones); not thread-safe.
class GRAFT_API KvCache {
 public:
  explicit KvCache(std::size_t layers) : layers_(layers) {}

  /// Appends [B, heads, T, head_dim] and returns all keys and values so far, [B, heads, length,
  /// head_dim]. A fixed cache takes T = 1, puts it where position is, and returns all its entries,
  /// [B, heads, capacity, head_dim]: those behind position do not exist yet and are finite.
  std::pair<at::Tensor, at::Tensor> append(std::size_t layer, const at::Tensor& k,
                                           const at::Tensor& v);
  /// Tokens that every layer has seen.
  std::int64_t length() const;

  /// What a step reads of a fixed cache beside keys and values, on their device.
  struct Fixed {
    std::int64_t capacity = 0;  ///< entries
    at::Tensor position;        ///< [1] int64: that of the token which comes next
    /// cos and sin of all positions, [capacity, rotary_dim] each, as a step first asks for them.
    std::map<const Rope*, std::pair<at::Tensor, at::Tensor>> rope_tables;
  };
  /// From now on a step has the same shapes and addresses and reads the same host values whatever
  /// the length, so that it can be recorded and replayed: a forward pass takes one token without a
  /// mask and is followed by advance(). What was appended is kept. Again, with another capacity, it
  /// makes room; what was recorded is void then. Throws Error(usage) when nothing was appended yet
  /// or `capacity` has no room for one more token.
  void fix(std::int64_t capacity);
  /// The token at position is there, in all layers: the next goes behind it.
  void advance();
  /// Grows as needed again.
  void unfix() { fixed_.reset(); }
  /// nullptr: not fixed.
  Fixed* fixed() { return fixed_ ? &*fixed_ : nullptr; }

 private:
  struct Layer {
    at::Tensor k, v;
    std::int64_t length = 0;
  };
  std::vector<Layer> layers_;
  std::optional<Fixed> fixed_;
};

/// The input of one forward pass.
struct Batch {
  at::Tensor input_ids;       ///< [B, T] int64
  at::Tensor attention_mask;  ///< [B, T] bool or integer, zero where padded; undefined: all ones
  KvCache* cache = nullptr;   ///< decoders: continue after what it holds
  bool last_logits_only = false;  ///< decoders: logits of the last position only, [B, 1, V]

  /// Called in the place of each layer with its number, its input [B, T, H] and what the layer
  /// makes of an input; gives the output. It may look on, leave layers out, or run one again with
  /// other modules in it, from any thread while it has not returned. Empty: layers are simply run.
  using LayerForward = std::function<at::Tensor(const at::Tensor& x)>;
  using AroundLayer = std::function<at::Tensor(std::size_t layer, const at::Tensor& x,
                                               const LayerForward& forward)>;
  AroundLayer around_layer;
};

/// Modules that share one input, and who makes that input: what calibration, scale folding and
/// fused kernels need to know of an architecture. Paths from the model's root.
struct InputGroup {
  std::vector<std::string> modules;
  std::string producer;  ///< norm or linear that can absorb a scale; empty: none
};

/// Two tensors that are one: `alias` is not in the checkpoint.
struct TiedTensor {
  std::string owner;  ///< "model.embed_tokens.weight"
  std::string alias;  ///< "lm_head.weight"
};

/// Names of a checkpoint that start with `in_file` are the model's that start with `in_model`:
/// those of a headless body, or of a text model inside a larger one.
struct CheckpointPrefix {
  std::string in_file;   ///< "language_model."
  std::string in_model;  ///< ""
};

/// A part inside a name that checkpoints spell in another way.
struct CheckpointRename {
  std::string in_file;   ///< ".block_sparse_moe."
  std::string in_model;  ///< ".mlp."
};

/// Tensors of a checkpoint that the model has no use for, and why.
struct UnusedTensors {
  std::string pattern;  ///< exact name or glob, as the model spells names
  std::string reason;
  bool carried = true;  ///< saving writes them again as they are: towers, heads for later tokens
};

/// An architecture: the module graph with Transformers' class and attribute names, so that names of
/// checkpoints, registries and skip lists fit without a table.
class GRAFT_API Model : public nn::Block {
 public:
  Model(std::string class_name, Value config);
  ~Model() override;

  using Block::to;
  /// Tensors that modules share, as tied weights are, stay shared.
  void to(torch::Device device, bool non_blocking = false) override;

  enum class Output { logits, last_hidden_state };
  virtual Output output() const = 0;
  /// Logits [B, T, V] or hidden states [B, T, H] in the model's dtype. Run it under InferenceMode.
  virtual at::Tensor forward(const Batch& batch) = 0;
  /// Tokens that a text may have where positions are learned; absent: there is no such end.
  virtual std::optional<std::int64_t> positions() const { return std::nullopt; }
  /// Decoder layers, for the size of a KvCache; 0 for an encoder.
  virtual std::size_t cache_layers() const = 0;
  virtual std::vector<InputGroup> input_groups() const = 0;
  virtual std::vector<TiedTensor> tied_tensors() const { return {}; }
  /// How checkpoints may spell names: prefixes first, each applied once in this order, then the
  /// first occurrence of each rename.
  virtual std::vector<CheckpointPrefix> checkpoint_prefixes() const { return {}; }
  virtual std::vector<CheckpointRename> checkpoint_renames() const { return {}; }
  /// What checkpoints of this architecture may hold beside the model's tensors.
  virtual std::vector<UnusedTensors> unused_tensors() const;

  /// config.json with what its family has for absent fields, and the part of the text model.
  const Value& config() const { return config_; }
  const Value& text_config() const;

 private:
  friend GRAFT_API std::shared_ptr<Model> build_model(const Value& config,
                                                      const at::TensorOptions& options);
  Value config_;
};

/// The model types that build_model knows.
GRAFT_API std::vector<std::string> known_model_types();

}  // namespace graft
