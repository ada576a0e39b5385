#pragma once

#include "graft/rounding.h"
#include "quant_state.h"

namespace graft::bnb {

/// Whether error feedback can make 4-bit blocks of rows of `inputs` weights: blocks may not reach
/// over the end of a row.
constexpr bool takes_feedback(std::int64_t inputs) { return inputs % kBlock == 0; }

/// What the rounder of feedback_weight is made with.
RoundingOptions feedback_options(Recipe recipe);

/// An ordinary 4-bit weight whose codes and absmax were chosen by error feedback over the second
/// moment of the input, in place of nearest codes under the true absmax. absmax may be negative
/// without double quantization; with it, codes are chosen again for what absmax then is.
QuantizedWeight feedback_weight(const WeightRounder& rounder, const at::Tensor& weight,
                                QuantType type, bool double_quant, at::ScalarType storage);

}  // namespace graft::bnb
