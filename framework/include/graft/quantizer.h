#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
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
};

/// One option of a method, from which the command line and YAML make theirs.
struct OptionSpec {
  std::string name;  ///< of the field of the settings: "bnb_4bit_quant_type"
  std::string flag;  ///< of the command line: "--quant-type"
  enum class Type { boolean, integer, number, text } type = Type::text;
  Value otherwise;  ///< default
  std::string help;
  std::vector<std::string> choices;  ///< empty: free
  /// Settings that a choice stands for, when it is no plain field: {"int8": {"load_in_8bit":
  /// true}}.
  Value meaning;
};

/// Modules with one common input (q/k/v; gate/up; else one alone), quantized together.
struct GroupMember {
  ModuleSpec spec;
  QuantConfigPtr config;
  Tensors dense;  ///< "weight" [N, K], "bias" [N] when spec.bias; never written to
};

struct GroupResult {
  std::vector<std::shared_ptr<nn::Block>> modules;  ///< filled, in the order of the members
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

  virtual std::vector<OptionSpec> options() const = 0;

  /// Whether the method needs a checkpoint that is quantized already (or calibration to make one).
  virtual bool pre_quantized_by_default() const = 0;

  virtual Support supports(const ModuleSpec& spec, const QuantConfig& config) const = 0;

  /// The class that build() makes, as its ecosystem names it: "QuantLinear".
  virtual std::string replacement_class(const ModuleSpec& spec,
                                        const QuantConfig& config) const = 0;

  /// All tensors of the module in a checkpoint. Those that a dense module does not have mark a
  /// module of a checkpoint as quantized.
  virtual std::vector<TensorSpec> tensors(const ModuleSpec& spec,
                                          const QuantConfig& config) const = 0;

  /// The replacement, every tensor on meta: allocates nothing of the weight's size.
  virtual std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                           const QuantConfig& config) const = 0;

  /// Puts checkpoint tensors (CPU) into a module made by build(). May keep references to them.
  /// Throws Error(model) naming the tensor; the module is unusable then.
  virtual void fill(nn::Block& module, const QuantConfig& config, const Tensors& tensors) const = 0;

  /// Dense tensors to filled modules, without calibration. The default refuses: the method needs
  /// it.
  virtual GroupResult quantize(std::span<const GroupMember> group, const Context& context) const;

  /// The tensors of a filled module in the checkpoint's layout, bit for bit.
  virtual Tensors save(const nn::Block& module, const QuantConfig& config) const = 0;

  /// The dense weight [N, K] that a filled module stands for, in the dtype its format defines.
  virtual at::Tensor dequantize(const nn::Block& module) const = 0;
};

/// The revision of this interface: GRAFT_PLUGIN answers query(kQuantizerInterface, method) with it.
inline constexpr const char* kQuantizerInterface = "graft.quantizer/1";

}  // namespace graft
