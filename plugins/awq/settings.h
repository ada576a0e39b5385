#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "graft/module_rules.h"
#include "graft/quant_config.h"
#include "graft/quantizer.h"
#include "graft/value.h"

namespace graft::awq {

/// A quantization_config of the method "awq". Fields, aliases and defaults are those of AutoAWQ,
/// GPTQModel and Transformers.
class AwqConfig : public QuantConfig {
 public:
  /// Throws Error(model) naming the field.
  static std::shared_ptr<const AwqConfig> parse(const Value& settings);
  /// The settings as they came, with what changed since.
  Value describe() const;
  std::string summary() const override;
  /// The settings of a module after GPTQModel's `dynamic`, or nullptr when it leaves it dense.
  std::shared_ptr<const QuantConfig> for_module(
      std::span<const std::string> names) const override;

  /// Layout of the tensors.
  enum class Version { gemm, gemv, gemv_fast };

  std::int64_t group_size = 128;  ///< -1: one group
  bool zero_point = true;         ///< false: all zero points are 8
  Version version = Version::gemm;     ///< as save() writes it
  Version read_as = Version::gemm;     ///< as the checkpoint has it
  Trust trust = Trust::neither;  ///< what decides where settings and tensors contradict each other

  std::int64_t group_of(std::int64_t inputs) const { return group_size < 0 ? inputs : group_size; }
  std::int64_t groups(std::int64_t inputs) const {
    return (inputs + group_of(inputs) - 1) / group_of(inputs);
  }

 private:
  /// Takes the fields that a rule may override.
  void apply(const Value& settings);

  std::vector<GivenRule> dynamic_;  ///< the first that matches decides
  Value source_;                    ///< as given
};

const char* word(AwqConfig::Version version);

}  // namespace graft::awq
