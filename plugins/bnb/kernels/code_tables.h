#pragma once

#include <array>

namespace graft::bnb {

enum class QuantType { nf4, fp4 };

/// What each 4-bit code stands for, to be multiplied by the block's absmax. NF4: QLoRA, appendix E;
/// FP4: sign, and a table of magnitudes; both as bitsandbytes has them in float32.
const std::array<float, 16>& code_table(QuantType type);

/// The signed dynamic map: what the 8-bit codes of absmax stand for under double quantization,
/// sorted. Made as bitsandbytes' create_dynamic_map does, in float32.
const std::array<float, 256>& dynamic_map();

}  // namespace graft::bnb
