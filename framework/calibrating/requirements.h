#pragma once

#include "graft/host.h"
#include "graft/model.h"
#include "graft/plan.h"

namespace graft {

/// Whether a dense model is to be calibrated with `ids`. Throws Error(usage) when its method needs
/// ids and there are none, or takes none.
bool uses_calibration(const Plan& plan, const at::Tensor& ids, const Model& model);

/// Throws Error(usage) for options of a calibration that would be of no use: without one, and for a
/// method that does not have what they ask for.
void require_useful(const LoadOptions& options, const Plan& plan, bool calibrated);

}  // namespace graft
