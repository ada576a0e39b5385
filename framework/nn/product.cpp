#include "graft/nn/product.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

namespace graft::nn {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr std::int64_t kFewRows = 16, kWeights = 1 << 17;  // of a part: they stay in the cache
  const std::int64_t outputs = weight.size(0), inputs = weight.size(1);
  const bool few = x.numel() > inputs && x.numel() < kFewRows * inputs;
  if (!few || !x.is_cpu() || x.scalar_type() != at::kFloat || x.requires_grad() ||
      weight.requires_grad() || (bias.defined() && bias.requires_grad()))
    return at::linear(x, weight, bias);
  const auto height = std::max<std::int64_t>(kWeights / inputs, 1);
  auto sizes = x.sizes().vec();
  sizes.back() = outputs;
  auto y = at::empty(sizes, x.options());
  for_each_part((outputs + height - 1) / height, [&](std::int64_t part) {
    const auto first = part * height, count = std::min(height, outputs - first);
    y.narrow(-1, first, count)
        .copy_(at::linear(x, weight.narrow(0, first, count),
                          bias.defined() ? bias.narrow(0, first, count) : bias));
  });
  return y;
}

}  // namespace graft::nn
