#pragma once

#include "graft/checkpoint.h"
#include "graft/host.h"
#include "graft/plan.h"
#include "graft/plugins.h"
#include "graft/value.h"

namespace graft {

/// All that the bytes of a calibrated quantization depend on, with the values of now: graft,
/// LibTorch, kernels, plugins, model, settings, plan, and of the options recipe, polishing, experts
/// and calibration ids.
Value describe_job(const Checkpoint& checkpoint, const Plan& plan, const Value& settings,
                   const Plugins& plugins, const LoadOptions& options);

}  // namespace graft
