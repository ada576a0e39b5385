#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

#include "graft/quant_config.h"
#include "graft/value.h"
#include "kernels/code_tables.h"

namespace graft::bnb {

/// A BitsAndBytesConfig. Fields and defaults are those of Transformers, except that 4 bits mean nf4
/// when the type is not said, because every published 4-bit model is nf4.
class BnbConfig : public QuantConfig {
 public:
  /// Throws Error(model) naming the field.
  static std::shared_ptr<const BnbConfig> parse(const Value& settings);
  /// All 13 fields that Transformers writes, in its order; those that were given as they came.
  Value describe() const;
  std::string summary() const override;

  enum class Int8Forward { llm_int8, dequant };

  int bits = 4;
  QuantType type = QuantType::nf4;
  bool double_quant = false;
  at::ScalarType compute_dtype = at::kFloat;
  at::ScalarType storage = at::kByte;  ///< of packed 4-bit weights that are written
  bool other_storage = false;          ///< `storage` is not what the checkpoint has
  double threshold = 6.0;              ///< of activations that leave int8; 0: none do
  bool has_fp16_weight = false;
  bool cpu_offload = false;
  Int8Forward int8_forward = Int8Forward::llm_int8;
  Value source{Value::Object{}};  ///< as given
};

}  // namespace graft::bnb
