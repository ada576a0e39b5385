#pragma once

#include <span>

#include "graft/quantizer.h"
#include "settings.h"

namespace graft::gptq {

/// What qzeros, g_idx, scales and a stray bias of one module say.
struct ModuleFindings : Findings {
  bool constant = false;     ///< all fields of qzeros are equal
  unsigned zero = 0;         ///< the first of them
  bool has_full = false;     ///< a field of qzeros is all ones
  at::Tensor g_idx;          ///< undefined: the checkpoint has none
  std::int64_t zero_scales = 0, negative_scales = 0;
  enum class StrayBias { none, zeros, values } stray_bias = StrayBias::none;
};

std::shared_ptr<const ModuleFindings> examine_module(const ModuleSpec& spec,
                                                     const GptqConfig& config,
                                                     const Tensors& tensors);

/// Compares the zero points with the format that the settings name, and gathers notes.
Settled settle_modules(const std::shared_ptr<const GptqConfig>& config,
                       std::span<const Examined> modules, Trust trust);

}  // namespace graft::gptq
