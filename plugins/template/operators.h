#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace org::example::rtn8 {

/// graft_rtn8::linear. x [..., K] of a float type, codes int8 [N, K], scales float32 [N], bias [N];
/// gives [..., N] in the type of x, computed in float32.
at::Tensor linear(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales,
                  const std::optional<at::Tensor>& bias);

/// Makes torch.ops.graft_rtn8. Throws c10::Error when another library has the name.
void register_operators();

}  // namespace org::example::rtn8
