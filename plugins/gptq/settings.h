#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "graft/module_rules.h"
#include "graft/quant_config.h"
#include "graft/quantizer.h"
#include "graft/value.h"
#include "kernels/format.h"

namespace graft::gptq {

/// A quantization_config of the method "gptq". Fields, aliases and defaults are those of GPTQModel,
/// AutoGPTQ and Transformers.
class GptqConfig : public QuantConfig {
 public:
  /// Throws Error(model) naming the field.
  static std::shared_ptr<const GptqConfig> parse(const Value& settings);
  /// The settings as they came, with what changed since; all fields when graft made them.
  Value describe() const;
  /// With `dynamic` for GPTQModel and vLLM and modules_in_block_to_quantize for Transformers, where
  /// they are needed. Throws Error(usage) for modules in another format of zero points.
  Value describe_modules(std::span<const PlannedModule> modules) const;
  std::string summary() const override;
  /// `dynamic`, the block and the list of modules in it.
  std::shared_ptr<const QuantConfig> for_module(
      std::span<const std::string> names) const override;

  /// checkpoint_format: how zero points are written.
  enum class Format { v1, v2 };

  int bits = 4;
  std::int64_t group_size = 128;  ///< -1: one group
  double damping = 0.05;          ///< damp_percent; only of making a file
  bool sym = true, desc_act = false, static_groups = false, lm_head = false;
  Format format = Format::v1;             ///< as the settings say, and as save() writes
  std::optional<Format> read_as;          ///< as the tensors turned out to be
  bool names_its_zeros = false;  ///< the settings say sym or zero_point
  /// The writer was AutoGPTQ, whose run time does not mask zero points.
  bool unmasked_zeros = false;
  Trust trust = Trust::neither;  ///< what decides where settings and tensors contradict each other

  ZeroRule zero_rule() const {
    if (read_as.value_or(format) == Format::v2) return ZeroRule::plain;
    return unmasked_zeros && !sym ? ZeroRule::unmasked : ZeroRule::borrowed;
  }
  std::int64_t group_of(std::int64_t inputs) const { return group_size < 0 ? inputs : group_size; }
  std::int64_t groups(std::int64_t inputs) const {
    return (inputs + group_of(inputs) - 1) / group_of(inputs);
  }

  /// The same settings, to be written with another format of zero points.
  std::shared_ptr<const GptqConfig> with_format(Format other) const;

 private:
  void apply(const Value& overrides);
  /// Whether block_name_to_quantize and modules_in_block_to_quantize have the module quantized.
  bool in_block(std::span<const std::string> names) const;
  /// What a rule of `dynamic` has to say of the module: false that it stays dense, an object of
  /// what it has of its own; null where nothing needs saying.
  Value rule_wanted(const PlannedModule& module) const;

  std::vector<GivenRule> dynamic_;     ///< the first that matches decides
  std::string block_;                  ///< prefix of the decoder layers; empty: any
  std::vector<std::string> in_block_;  ///< ends of names that are quantized; empty: all
  Value source_;                       ///< as given; null when graft made the settings
};

const char* word(GptqConfig::Format format);

}  // namespace graft::gptq
