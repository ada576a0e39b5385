#pragma once

#include <memory>

#include "graft/nn/row_product.h"
#include "kernels/activations.h"
#include "kernels/panels.h"

namespace graft::kernels {

/// y = x W^T + bias with a packed weight, as multiply() computes it: the same bits. The weight's
/// memory and `bias` (float32 [n] or null) are borrowed.
std::unique_ptr<nn::RowProduct> panel_product(const PanelWeight& weight, const float* bias, Act act);

/// The same with a dense weight [n][k] of `type`, for the few rows of decoding: products and sums
/// in float32.
std::unique_ptr<nn::RowProduct> dense_product(const void* weight, ElementType type, std::int64_t n,
                                              std::int64_t k, const float* bias);

}  // namespace graft::kernels
