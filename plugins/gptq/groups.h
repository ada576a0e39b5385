#pragma once

#include <optional>
#include <string>

#include "graft/module_spec.h"
#include "graft/tensors.h"
#include "kernels/format.h"
#include "settings.h"

namespace graft::gptq {

/// Which group each input belongs to.
struct Groups {
  at::Tensor of_input;    ///< [K] int32, in range
  bool in_order = false;  ///< the inputs are, group after group
  /// Why a stored g_idx is not what was used, or is surprising; empty: nothing to tell.
  std::string note;
};

/// [K] int32: k / group size.
at::Tensor groups_in_order(std::int64_t inputs, std::int64_t group_size);

/// A genuine g_idx is used; one that is none is
/// ignored when the settings say that inputs are in order, else refused. `g_idx` is undefined when
/// the checkpoint has none. Throws Error(model) naming the tensor and the first bad position.
Groups find_groups(const at::Tensor& g_idx, std::int64_t inputs, const GptqConfig& config);

}  // namespace graft::gptq
