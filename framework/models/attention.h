#pragma once

#include <ATen/core/Tensor.h>

namespace graft {

/// [B, T, heads * head_dim] -> [B, heads, T, head_dim], a view.
at::Tensor split_heads(const at::Tensor& x, std::int64_t heads, std::int64_t head_dim);
/// The inverse of split_heads.
at::Tensor join_heads(const at::Tensor& x);

/// What a query sees and how its scores are formed.
struct Attention {
  double scale = 1;
  at::Tensor padding;       ///< [B, S] bool, false where a key is padding; undefined: none
  /// [1] int64: the position of the only row, behind which keys do not exist; undefined: rows are
  /// the last of the keys.
  at::Tensor position;
  std::int64_t window = 0;  ///< its own key and the window - 1 before it; 0: all before it
  std::int64_t chunk = 0;   ///< keys of its own chunk of this many positions; 0: no chunks
  double softcap = 0;       ///< scores become softcap * tanh(score / softcap); 0: as they are
  at::Tensor sinks;         ///< [heads] logits that take part in the softmax and have no value
};

/// Causal attention of the last T positions, or of the one that `how` names, over S >= T. q [B,
/// heads, T, D]; k, v [B, kv_heads, S, D] with heads a multiple of kv_heads; the D of v may be
/// another.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Attention& how);

/// Attention of every position over every position that `padding` leaves.
at::Tensor full_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale, const at::Tensor& padding);

}  // namespace graft
