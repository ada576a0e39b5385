#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "graft/context.h"
#include "graft/module_spec.h"
#include "graft/nn/block.h"
#include "graft/quant_config.h"
#include "graft/tensors.h"
#include "graft/value.h"

namespace graft {

/// May this module be replaced? Yes with a cost (lower is better) and the kernel that will run, or
/// no with a reason for people.
struct Support {
  bool yes = false;
  double cost = 0;
  std::string kernel;  ///< "cpu avx512 dequantize"
  std::string reason;

  static Support with(std::string kernel, double cost = 0) {
    return {true, cost, std::move(kernel), {}};
  }
  static Support no(std::string reason) { return {false, 0, {}, std::move(reason)}; }
};

/// A tensor that a quantized module has in a checkpoint.
struct TensorSpec {
  std::string name;                                ///< relative to the module
  std::vector<at::ScalarType> dtypes;              ///< allowed; empty: any
  std::optional<std::vector<std::int64_t>> shape;  ///< std::nullopt: any
  bool required = true;
  std::uint64_t bytes = 0;  ///< what writing it takes, for the plan; 0: none or unknown
  bool finite = false;      ///< NaN and infinity in it are refused before fill()
  bool examined = false;    ///< small: examine() gets it

  /// A required tensor of this shape; `bytes` are those of the first dtype.
  static GRAFT_API TensorSpec of(std::string name, std::vector<at::ScalarType> dtypes,
                                 std::vector<std::int64_t> shape);
};

/// Which side wins when the settings and the tensors of a checkpoint contradict each other.
enum class Trust { neither, label, data };

/// What the small tensors of one module say; a plugin derives its own.
class GRAFT_API Findings {
 public:
  virtual ~Findings();
};

/// A module that was examined.
struct Examined {
  ModuleSpec spec;
  QuantConfigPtr config;
  std::shared_ptr<const Findings> findings;
};

/// What a plan made of one dense module that a plugin of the method could have replaced.
struct PlannedModule {
  std::vector<std::string> names;  ///< its path in the model, then as its checkpoint spells it
  QuantConfigPtr config;           ///< null: it stays dense
  bool usual = false;  ///< dense as every reader of the method has it on its own: PlanEntry::Dense
  bool below = false;  ///< names a block, dense with all modules that readers have in it: experts
};

/// What holds for a checkpoint after its tensors were looked at.
struct Settled {
  QuantConfigPtr config;                ///< of the model, for describe()
  std::vector<QuantConfigPtr> configs;  ///< of each module, in the order they were given
  std::vector<std::string> detected;    ///< lines for people: "zero points are 8 everywhere: v1"
  std::vector<std::string> notes;       ///< what is odd but harmless
  std::vector<std::string> doubts;      ///< warnings that --strict makes errors of
};

/// One option of a method, from which the command line and YAML make theirs.
struct OptionSpec {
  std::string name;  ///< of the field of the settings: "group_size"
  std::string flag;  ///< of the command line: "--group-size"
  enum class Type { boolean, integer, number, text } type = Type::text;
  Value otherwise;  ///< default
  std::string help;
  std::vector<std::string> choices;  ///< empty: free
  /// Settings that a choice stands for, when it is no plain field: {"int8": {"load_in_8bit":
  /// true}}. Options that come later win over them.
  Value meaning;
  /// Says how to run a quantized model, not what it is: may be given beside the model's settings.
  bool for_loading = false;
};

/// What calibration text showed of a module's input x [.., K].
struct InputStatistics {
  at::Tensor hessian;       ///< [K, K] float32, the mean of x x^T; undefined without tokens
  std::int64_t tokens = 0;  ///< rows of x that were seen
};

/// How a method uses calibration text.
enum class CalibrationUse { none, optional, required };

/// How much work a calibrated quantization takes on itself; every recipe writes the same format.
enum class Recipe {
  fast,      ///< one pass over the weights
  standard,  ///< "default": what pays in most models
  best,      ///< more sweeps
};

struct GroupMember {
  ModuleSpec spec;
  QuantConfigPtr config;
  Tensors dense;  ///< "weight" [N, K], "bias" [N] when spec.bias; never written to
};

/// Modules with one common input (q/k/v; gate/up; else one alone), quantized together.
struct ModuleGroup {
  std::vector<GroupMember> members;
  InputStatistics inputs;  ///< without tokens: nothing is known of the input
  Recipe recipe = Recipe::standard;
  /// Squared distance of what the block around the modules (attention, MLP) gives for the text from
  /// what it gives with their dense weights, when they have these, [N, K] each, for the input as it
  /// is; the block is run again each time. Empty: judge by `inputs`.
  std::function<double(const std::vector<at::Tensor>& weights)> block_error{};
};

struct GroupResult {
  std::vector<std::shared_ptr<nn::Block>> modules;  ///< filled, in the order of the members
  /// Why the statistics could not be used, where a plainer way stood in: "saw 3 tokens". Empty:
  /// they were, or there were none.
  std::string fallback{};
};

/// A filled module's weight [N, K] float32, and those that it would stand for with every code one
/// higher and one lower; where there is no such code the element is as in `weight`.
struct WeightNeighbours {
  at::Tensor weight, higher, lower;
};

/// A method's logic, from a plugin. Stateless, const, thread-safe; lives as long as the process.
/// Functions above `fill` see no data, so that planning and conversion on meta cost nothing and
/// report everything that is wrong at once. All may throw graft::Error, other std::exceptions or
/// c10::Error, never a type of their own.
class GRAFT_API Quantizer {
 public:
  virtual ~Quantizer();

  /// How surely `settings` (a quantization_config object) belong to this method: 0 not at all,
  /// 100 it names this method. Also for settings without quant_method, or with an alias.
  virtual int recognises(const Value& settings) const = 0;

  /// Validates, fills in defaults. Producers' quirks live here. Throws Error(model) naming the
  /// field.
  virtual QuantConfigPtr parse(const Value& settings) const = 0;

  /// The quantization_config object to write for `config`.
  virtual Value describe(const QuantConfig& config) const = 0;

  /// describe(config) of a model that was quantized here, with what `modules` say beyond it: which
  /// of them stay dense, which have settings of their own, as other readers of the method need to
  /// be told. Throws Error(usage) where the method's files have no way to say it. The default adds
  /// nothing, and throws when modules are quantized with settings that differ from for_module().
  virtual Value describe_modules(const QuantConfig& config,
                                 std::span<const PlannedModule> modules) const;

  virtual std::vector<OptionSpec> options() const = 0;

  /// Files beside config.json that hold the settings too, or alone in old folders: read when
  /// config.json has none, written beside it.
  virtual std::vector<std::string> settings_files() const { return {}; }

  /// Layouts that a checkpoint of the method can be written in: "gptq", "gptq_v2".
  virtual std::vector<std::string> formats() const { return {}; }

  /// `config` with another of formats(); save() then writes that layout. Throws Error(usage).
  virtual QuantConfigPtr in_format(const QuantConfig& config, const std::string& format) const;

  /// `settings` in which these modules (path, bits) have bits of their own, as the method's files
  /// say it; bits are choices of the option "bits". Throws Error(usage): there is no way to, or the
  /// settings have rules for modules already; for no modules, too: asked before all else.
  virtual Value with_bits(const Value& settings,
                          const std::vector<std::pair<std::string, int>>& modules) const;

  /// Whether settings without a checkpoint's word for it are taken to describe a quantized one.
  virtual bool pre_quantized_by_default() const = 0;

  /// What quantize() does with InputStatistics.
  virtual CalibrationUse calibration(const QuantConfig& config) const;

  virtual Support supports(const ModuleSpec& spec, const QuantConfig& config) const = 0;

  /// Throws Error(usage) when other readers of the method do not load what quantize() would make of
  /// a dense module with these settings: groups that its inputs are no multiple of.
  virtual void require_portable(const ModuleSpec& spec, const QuantConfig& config) const;

  /// The class that build() makes, as its ecosystem names it: "QuantLinear".
  virtual std::string replacement_class(const ModuleSpec& spec,
                                        const QuantConfig& config) const = 0;

  /// All tensors of the module in a checkpoint. Those that a dense module does not have mark a
  /// module of a checkpoint as quantized.
  virtual std::vector<TensorSpec> tensors(const ModuleSpec& spec,
                                          const QuantConfig& config) const = 0;

  /// Looks at the tensors of a module that tensors() marks as examined, before anything is loaded.
  /// Those that the checkpoint lacks are absent. May throw Error(model) naming the tensor.
  virtual std::shared_ptr<const Findings> examine(const ModuleSpec& spec, const QuantConfig& config,
                                                  const Tensors& tensors) const;

  /// Once for a checkpoint, with all its quantized modules: finds out what the settings leave open
  /// and whether the tensors agree with them. Throws Error(model) for a contradiction that `trust`
  /// does not decide. The default leaves the configs as they are.
  virtual Settled settle(const QuantConfigPtr& config, std::span<const Examined> modules,
                         Trust trust) const;

  /// The replacement, every tensor on meta: allocates nothing of the weight's size.
  virtual std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                           const QuantConfig& config) const = 0;

  /// Puts checkpoint tensors (CPU) into a module made by build(). May keep references to them.
  /// Throws Error(model) naming the tensor; the module is unusable then. By default the module's
  /// own tensors, under their names.
  virtual void fill(nn::Block& module, const QuantConfig& config, const Tensors& tensors) const;

  /// Dense tensors to filled modules. Where calibration() is `required` the host calls it without
  /// statistics only for modules that no token of the text reached. The default refuses: the method
  /// only loads.
  virtual GroupResult quantize(const ModuleGroup& group, const Context& context) const;

  /// What to divide the group's input by, channel by channel, and multiply its weights by, so that
  /// they lose less in quantize(): [K] float32, positive; undefined: nothing. Only asked where the
  /// module before can take the scales; quantize() then gets the changed weights and statistics.
  virtual at::Tensor input_scales(const ModuleGroup& group, const Context& context) const;
  /// Whether input_scales() searches, and by block_error where the group has it.
  virtual bool searches_scales(const QuantConfig& config) const;

  /// Whether filled modules have neighbours() and can be moved() to them, for polishing.
  virtual bool moves_codes(const QuantConfig& config) const;
  virtual WeightNeighbours neighbours(const nn::Block& module) const;
  /// What quantize() or fill() made, with other codes: `moves` [N, K] int8 holds 1 where a code is
  /// to be one higher, -1 where it is to be one lower, else 0.
  virtual std::shared_ptr<nn::Block> moved(const nn::Block& module, const ModuleSpec& spec,
                                           const QuantConfig& config,
                                           const at::Tensor& moves) const;

  /// The tensors of a filled module in the layout that `config` describes: bit for bit those it was
  /// filled with when that is its own. Throws Error(usage) when they cannot be had in that layout
  /// without a loss. By default the module's own tensors, under their names.
  virtual Tensors save(const nn::Block& module, const QuantConfig& config) const;

  /// The dense weight [N, K] that a filled module stands for, in the dtype its format defines.
  virtual at::Tensor dequantize(const nn::Block& module) const = 0;

  /// Whether dense modules that a device map leaves on the CPU, while others go to a GPU, are
  /// quantized as well. Throws Error(usage) where the settings have to allow such a map.
  virtual bool quantizes_offloaded(const QuantConfig& config) const;
};

/// The revision of this interface: GRAFT_PLUGIN answers query(kQuantizerInterface, method) with it.
inline constexpr const char* kQuantizerInterface = "graft.quantizer/7";

}  // namespace graft
