#pragma once

namespace graft::gptq {

/// Makes torch.ops.graft_gptq for the CPU, meta, and CUDA where it is built. Throws c10::Error when
/// another library has the name.
///
///   dequantize(qweight, qzeros, scales, g_idx, bits, group_size, v2) -> [N, K]
///   linear(x, qweight, qzeros, scales, g_idx, bits, group_size, v2, bias) -> [..., N]
///
/// of tensors as they lie in files (README.md), all on one device: qweight int32
/// [ceil(K * bits / 32), N], qzeros int32 [G, ceil(N * bits / 32)], scales [G, N], g_idx int32 [K]
/// or None, bias [N] or None, x [..., K] of a float type. K is that of x, else of g_idx, else all
/// that fits into qweight. `group_size` -1 is one group; `v2` says that zero points are stored as
/// they are. A weight has the dtype of the scales, [out, in] as a Linear has it; a product that of
/// x, by the rules of QuantLinear. Each call packs the weight anew: models that run keep modules.
/// What does not fit throws Error naming the argument.
void register_operators();

}  // namespace graft::gptq
