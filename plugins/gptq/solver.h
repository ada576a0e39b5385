#pragma once

#include "graft/quantizer.h"

namespace graft::gptq {

/// Dense weights to the tensors of a checkpoint: error feedback by the second moment of the input, in
/// settings' order of inputs, with scales searched and refitted (graft/rounding.h). Scales are in the
/// model's dtype, so that every reader has them exactly, of a float32 model in half precision.
GroupResult quantize_group(const ModuleGroup& group);

/// Quantizer::moved.
std::shared_ptr<nn::Block> with_moved_codes(const nn::Block& module, const ModuleSpec& spec,
                                            const QuantConfig& config, const at::Tensor& moves);

}  // namespace graft::gptq
