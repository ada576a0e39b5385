#pragma once

#include "graft/checkpoint.h"
#include "graft/context.h"
#include "graft/error.h"
#include "graft/plan.h"
#include "graft/quantizer.h"

namespace graft {

/// Reads the small tensors of every module that is to be quantized and lets its quantizer settle
/// what the settings leave open: the entries get their final configs, the plan what was detected.
/// `base` is the config of the plan's plugin; returns it as settled. Throws Error(model) naming
/// module and tensor when the tensors contradict the settings and `trust` does not decide.
QuantConfigPtr settle_plan(Plan& plan, const Checkpoint& checkpoint, const QuantConfigPtr& base,
                           Trust trust, const Context& context);

/// Throws Error(model) with the first position when a float tensor holds NaN or infinity.
void require_finite(const at::Tensor& tensor, const std::string& name);

}  // namespace graft
