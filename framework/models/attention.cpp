#include "models/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/floor_divide.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tanh.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace graft {
namespace {

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                  const std::optional<at::Tensor>& mask, bool causal) {
  const bool grouped = q.size(1) != k.size(1);
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, causal, scale, grouped);
}

/// Causal attention of as many rows as keys. LibTorch multiplies blocks of 512 keys whole, half of
/// them for nothing when there are no more; pieces of the rows see no further than their last.
at::Tensor attend_causally(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           double scale) {
  constexpr std::int64_t kBlock = 512, kPiece = 128;
  const auto rows = q.size(2);
  if (rows <= kPiece || rows > kBlock || !q.is_cpu())
    return attend(q, k, v, scale, std::nullopt, true);
  const auto options = at::TensorOptions(at::kLong);
  std::vector<at::Tensor> pieces;
  for (std::int64_t first = 0; first < rows; first += kPiece) {
    const auto last = std::min(rows, first + kPiece);
    const auto seen =
        at::arange(last, options).unsqueeze(0) <= at::arange(first, last, options).unsqueeze(1);
    pieces.push_back(attend(q.narrow(2, first, last - first), k.narrow(2, 0, last),
                            v.narrow(2, 0, last), scale, seen, false));
  }
  return at::cat(pieces, 2);
}

/// The same with what scaled_dot_product_attention lacks: a cap on the scores, and sinks.
at::Tensor attend_plainly(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const Attention& how, const std::optional<at::Tensor>& mask) {
  const auto batch = q.size(0), heads = q.size(1), rows = q.size(2), columns = k.size(2);
  const auto kv_heads = k.size(1), group = heads / kv_heads;
  const auto grouped_q = q.reshape({batch, kv_heads, group * rows, q.size(3)});
  auto scores = at::matmul(grouped_q, k.transpose(2, 3)) * how.scale;
  if (how.softcap > 0) scores = at::tanh(scores / how.softcap) * how.softcap;
  scores = scores.view({batch, heads, rows, columns}).to(at::kFloat);
  if (mask) scores = scores.masked_fill(mask->logical_not(), std::numeric_limits<float>::lowest());
  if (how.sinks.defined()) {
    const auto sinks = how.sinks.to(at::kFloat).view({1, heads, 1, 1});
    scores = at::cat({scores, sinks.expand({batch, heads, rows, 1})}, -1);
  }
  auto weights = at::softmax(scores, -1).narrow(-1, 0, columns).to(v.scalar_type());
  weights = weights.reshape({batch, kv_heads, group * rows, columns});
  return at::matmul(weights, v).view({batch, heads, rows, v.size(3)});
}

}  // namespace

at::Tensor split_heads(const at::Tensor& x, std::int64_t heads, std::int64_t head_dim) {
  return x.view({x.size(0), x.size(1), heads, head_dim}).transpose(1, 2);
}

at::Tensor join_heads(const at::Tensor& x) {
  return x.transpose(1, 2).reshape({x.size(0), x.size(2), x.size(1) * x.size(3)});
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Attention& how) {
  const auto rows = q.size(2), all = k.size(2);
  const bool placed = how.position.defined();
  const auto window = how.window < all ? how.window : 0;
  const auto chunk = how.chunk < all ? how.chunk : 0;
  // Keys that no row sees are left out before anything is multiplied, where the host knows them.
  std::int64_t first = 0;
  if (window > 0 && !placed) first = std::max<std::int64_t>(0, all - rows - window + 1);
  if (chunk > 0 && !placed) first = std::max(first, (all - rows) / chunk * chunk);
  const auto columns = all - first;
  const auto keys = first ? k.narrow(2, first, columns) : k;
  const auto values = first ? v.narrow(2, first, columns) : v;

  const bool plain = how.softcap > 0 || how.sinks.defined();
  std::optional<at::Tensor> mask;
  const bool narrowed = (window > 0 || chunk > 0) && rows > 1;
  if (placed || narrowed || how.padding.defined() || (rows > 1 && (plain || rows != columns))) {
    const auto options = at::TensorOptions(q.device()).dtype(at::kLong);
    const auto row = (placed ? how.position : at::arange(all - rows, all, options)).unsqueeze(1);
    const auto column = at::arange(first, all, options).unsqueeze(0);
    auto seen = column <= row;
    if (window > 0) seen = seen.logical_and(column > row - window);
    if (chunk > 0)
      seen = seen.logical_and(at::floor_divide(column, chunk) == at::floor_divide(row, chunk));
    if (how.padding.defined())
      seen = seen.logical_and(
          how.padding.narrow(1, first, columns).view({how.padding.size(0), 1, 1, columns}));
    mask = seen;
  }
  if (plain) return attend_plainly(q, keys, values, how, mask);
  if (!mask && rows > 1) return attend_causally(q, keys, values, how.scale);
  if (!placed) return attend(q, keys, values, how.scale, mask, false);
  // The heads that share keys become rows of one: with a mask, LibTorch's kernels for devices take
  // no groups and would have the keys repeated.
  const auto shared = q.reshape({q.size(0), k.size(1), q.size(1) / k.size(1), q.size(3)});
  return attend(shared, keys, values, how.scale, mask, false)
      .reshape({q.size(0), q.size(1), 1, v.size(3)});
}

at::Tensor full_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale, const at::Tensor& padding) {
  if (!padding.defined()) return attend(q, k, v, scale, std::nullopt, false);
  return attend(q, k, v, scale, padding.view({padding.size(0), 1, 1, padding.size(1)}), false);
}

}  // namespace graft
