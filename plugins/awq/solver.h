#pragma once

#include "graft/quantizer.h"

namespace graft::awq {

/// Dense weights to the tensors of a checkpoint: error feedback by the second moment of the input,
/// with scales and zero points searched for each group (graft/rounding.h).
GroupResult quantize_group(const ModuleGroup& group);

/// Quantizer::moved.
std::shared_ptr<nn::Block> with_moved_codes(const nn::Block& module, const ModuleSpec& spec,
                                            const QuantConfig& config, const at::Tensor& moves);

/// AWQ's scales: powers of the input's root mean square, of which the one is taken whose weights
/// lose least when they are rounded as quantize_group rounds them. The loss is tr(D H D^T), D = W -
/// rounded, so that nothing is run again, or the group's block_error as in AWQ, arXiv 2306.00978.
/// Undefined when no power is better than none.
at::Tensor find_input_scales(const ModuleGroup& group);

}  // namespace graft::awq
