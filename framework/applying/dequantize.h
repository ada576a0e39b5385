#pragma once

#include <map>
#include <memory>
#include <string>

#include "graft/nn/block.h"
#include "graft/plan.h"

namespace graft {

/// Dtypes of a model's tensors by name, "model.norm.weight".
using TensorDtypes = std::map<std::string, at::ScalarType>;

/// Puts dense Linear modules with the dequantized weights where converted ones are. In another
/// dtype than the plan's, the tensors of the other modules follow: to what `dtypes` says, else
/// those that are in the plan's dtype. Throws Error(usage) before anything changes where `dtype` is none that
/// models compute in, and where values do not fit into float16.
void dequantize_in_place(const std::shared_ptr<nn::Block>& root, const Plan& plan,
                         at::ScalarType dtype, const TensorDtypes& dtypes = {});

}  // namespace graft
