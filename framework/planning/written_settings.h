#pragma once

#include "graft/export.h"
#include "graft/plan.h"
#include "graft/value.h"

namespace graft {

/// The quantization_config of a model that was quantized by `plan`, whose method has the settings
/// `config`: with what became of single modules (Quantizer::describe_modules). Throws Error(usage)
/// where the method's files cannot say it. Null when the plan quantizes nothing.
GRAFT_API Value written_settings(const Plan& plan, const QuantConfig& config);

/// The quantizer that parsed the settings, of a plan that quantizes something; else nullptr.
GRAFT_API const Quantizer* quantizer_of(const Plan& plan);

}  // namespace graft
