#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "graft/device_map.h"
#include "graft/module_spec.h"
#include "graft/nn/tensor_part.h"
#include "graft/quant_config.h"
#include "graft/value.h"

namespace graft {

class Quantizer;

enum class Action {
  quantize,     ///< replaced by a plugin's module
  restructure,  ///< replaced by modules with the same values, which the walk goes on into
  keep,         ///< stays as it is
};

/// A tensor that an entry takes from the checkpoint.
struct PlannedTensor {
  std::string name;    ///< relative to the module: "weight"
  std::string source;  ///< name in the checkpoint
  std::uint64_t bytes = 0;
  std::optional<nn::Region> of_source;  ///< the tensor is this part of `source`; absent: all of it
  std::optional<nn::Region> into;       ///< `source` fills this part of the tensor; absent: all
  bool finite = false;    ///< NaN and infinity in it are refused
  bool examined = false;  ///< its quantizer looks at it before anything is loaded
};

class Checkpoint;

/// What `planned` takes from the checkpoint, in the module's orientation and the file's dtype, on
/// the CPU. Of a tensor that holds many parts only the one is read.
GRAFT_API at::Tensor read_planned(const Checkpoint& checkpoint, const PlannedTensor& planned);

/// A tensor of the checkpoint that the model has no use for.
struct UnloadedTensor {
  std::string source;  ///< name in the checkpoint
  std::string reason;
  bool carried = false;  ///< saving writes it again as it is
  std::string part;      ///< the part of the checkpoint's model it belongs to: "vision_tower"
};

/// What becomes of one module that owns parameters.
struct PlanEntry {
  ModuleSpec spec;
  std::vector<std::string>
      also;  ///< further paths to the same module: converted once, swapped at each
  Action action = Action::keep;
  std::string reason;       ///< the rule or claim that decided, or why it is kept
  std::string replacement;  ///< class name afterwards; empty for keep
  std::string plugin;       ///< id, when a plugin builds the replacement
  std::string settings;     ///< one line: "4 bit g128 sym"
  std::string kernel;
  std::string source_path;  ///< how the checkpoint spells the module; empty: as spec.path
  bool unsupported = false;  ///< kept although claimed: no plugin supports it, see reason
  /// Why a module is kept that a plugin of the method could have replaced.
  enum class Dense {
    unclaimed,  ///< no plugin could
    usual,      ///< as all readers have it: tied weights, the output head
    chosen,     ///< by a skip list, another rule or the caller, or for want of support
  };
  Dense dense = Dense::unclaimed;  ///< of kept modules
  std::vector<PlannedTensor> tensors;
  std::vector<nn::TensorPart> parts;  ///< restructure: where the new tensors' values are
  /// Restructure: shapes of the former tensors, where dense checkpoints have those.
  std::map<std::string, std::vector<std::int64_t>> in_one_piece;
  std::uint64_t bytes_before = 0;     ///< dense, in the plan's dtype
  std::uint64_t bytes_after = 0;      ///< as written

  // What carries the entry out; both outlive every plan that is in use.
  const Quantizer* quantizer = nullptr;
  QuantConfigPtr config;
};

/// The whole conversion as a value, made without reading a weight. Every parameter of the model is
/// in exactly one entry or is an alias of one that is.
struct GRAFT_API Plan {
  std::string method;  ///< empty: nothing is quantized
  std::string plugin;  ///< id of the plugin that parsed the settings
  std::string settings;
  bool pre_quantized = false;
  at::ScalarType dtype = at::kFloat;    ///< of kept tensors and activations
  DeviceMap devices;                    ///< where its parts go; decided
  std::vector<PlanEntry> entries;       ///< parents before children
  std::vector<std::string> tied;        ///< aliases that need no tensor: "lm_head.weight"
  std::vector<std::string> missing;     ///< tensors the model needs and the checkpoint lacks
  std::vector<std::string> mismatched;  ///< tensors whose shape or dtype cannot be used, with both
  std::vector<std::string> unexpected;  ///< tensors of the checkpoint that nothing takes
  std::vector<UnloadedTensor> unloaded;  ///< of the checkpoint, known and not needed: towers
  std::vector<std::string> detected;    ///< what the tensors themselves say, once they were read
  std::vector<std::string> unmatched;   ///< patterns that matched no module: skip lists, rules
  std::vector<std::string> notes;       ///< what is odd but harmless, for people
  std::vector<std::string> doubts;      ///< warnings that `strict` makes errors of
  /// Of each module that is to be quantized into what other readers would not load, why.
  std::vector<std::string> unportable;
  std::string refusal;  ///< what contradicts the settings in the tensors; empty: nothing was found
  std::uint64_t bytes_in_checkpoint = 0;  ///< of all its tensors; 0 without one
  /// Of tensors that no entry takes: those not loaded, the unexpected ones, copies of tied ones.
  /// Always bytes_taken() + bytes_unused == bytes_in_checkpoint.
  std::uint64_t bytes_unused = 0;

  std::size_t count(Action action) const;
  std::uint64_t bytes_before() const;
  std::uint64_t bytes_after() const;
  /// Bits per weight over the entries that are quantized.
  double bits_per_weight() const;
  /// Bytes of the checkpoint that entries take.
  std::uint64_t bytes_taken() const;

  /// Throws Error(model) for what is missing, mismatched or contradictory, Error(usage) for what is
  /// unportable; under `strict` also for what is doubtful, and Error(coverage) for what is
  /// unexpected, unmatched or left dense for want of support.
  void check(bool strict) const;
  /// Stable keys, docs/cli.md.
  Value to_value() const;
};

}  // namespace graft
