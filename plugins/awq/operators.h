#pragma once

namespace graft::awq {

/// Makes torch.ops.graft_awq for the CPU, meta, and CUDA where it is built. Throws c10::Error when
/// another library has the name.
///
///   dequantize(qweight, qzeros, scales, group_size, version) -> [N, K]
///   linear(x, qweight, qzeros, scales, group_size, bias, version) -> [..., N]
///
/// of tensors as they lie in files of `version`, all on one device; for "gemm" qweight int32
/// [K, N / 8], qzeros int32 [G, N / 8] and scales [G, N], for "gemv" and "gemv_fast" as README.md
/// says. bias [N] or None, x [..., K] of a float type; `group_size` -1 is one group. A weight has
/// the dtype of the scales, [out, in] as a Linear has it; a product that of x, by the rules of
/// WQLinear. Each call packs the weight anew: models that run keep modules. What does not fit
/// throws Error naming the argument.
void register_operators();

}  // namespace graft::awq
