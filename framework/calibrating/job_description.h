#pragma once

#include <ATen/core/Tensor.h>

#include "graft/checkpoint.h"
#include "graft/plan.h"
#include "graft/plugins.h"
#include "graft/quantizer.h"
#include "graft/value.h"

namespace graft {

/// All that the bytes of a calibrated quantization depend on, with the values of now: graft,
/// LibTorch, kernels, plugins, model, settings, recipe, plan and calibration ids.
Value describe_job(const Checkpoint& checkpoint, const Plan& plan, const Value& settings,
                   const Plugins& plugins, Recipe recipe, const at::Tensor& ids);

}  // namespace graft
