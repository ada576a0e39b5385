#include "models/attention.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <optional>

#include "graft/error.h"
#include "graft/model.h"

namespace graft {
namespace {

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  const std::optional<at::Tensor>& mask, bool causal) {
  const bool grouped = q.size(1) != k.size(1);
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, causal, scale, grouped);
}

}  // namespace

at::Tensor split_heads(const at::Tensor& x, std::int64_t heads, std::int64_t head_dim) {
  return x.view({x.size(0), x.size(1), heads, head_dim}).transpose(1, 2);
}

at::Tensor join_heads(const at::Tensor& x) {
  return x.transpose(1, 2).reshape({x.size(0), x.size(2), x.size(1) * x.size(3)});
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale, const at::Tensor& padding) {
  const auto rows = q.size(2), columns = k.size(2);
  if (!padding.defined()) {
    if (rows == 1) return attend(q, k, v, scale, std::nullopt, false);
    if (rows == columns) return attend(q, k, v, scale, std::nullopt, true);
  }
  auto mask = at::ones({rows, columns}, q.options().dtype(at::kBool)).tril(columns - rows);
  if (padding.defined()) mask = mask.logical_and(padding.view({padding.size(0), 1, 1, columns}));
  return attend(q, k, v, scale, mask, false);
}

at::Tensor full_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale, const at::Tensor& padding) {
  if (!padding.defined()) return attend(q, k, v, scale, std::nullopt, false);
  return attend(q, k, v, scale, padding.view({padding.size(0), 1, 1, padding.size(1)}), false);
}

}  // namespace graft
