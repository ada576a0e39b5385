#pragma once

#include <ATen/core/Tensor.h>

namespace graft {

/// [B, T, heads * head_dim] -> [B, heads, T, head_dim], a view.
at::Tensor split_heads(const at::Tensor& x, std::int64_t heads, std::int64_t head_dim);
/// The inverse of split_heads.
at::Tensor join_heads(const at::Tensor& x);

/// Causal attention of the last T positions over S >= T. q [B, heads, T, D]; k, v [B, kv_heads, S,
/// D] with heads a multiple of kv_heads. `padding` [B, S] bool, false where a key is padding;
/// undefined: none.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale, const at::Tensor& padding);

/// Attention of every position over every position that `padding` leaves.
at::Tensor full_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale, const at::Tensor& padding);

}  // namespace graft
