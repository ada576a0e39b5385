#pragma once

#include <ATen/core/Tensor.h>

#include "graft/module_spec.h"
#include "graft/quantizer.h"
#include "graft/tensors.h"
#include "settings.h"

namespace graft::awq {

/// What a packed weight says, the same for every layout. W = (code - zero) * scale + offset.
struct Packed {
  at::Tensor qweight;  ///< int32 [K, N / 8], the GEMM layout
  at::Tensor scales;   ///< [G, N]
  at::Tensor zeros;    ///< uint8 [G, N]
  at::Tensor
      offsets;  ///< [G, N] of a GEMVFast file whose offsets are no zero points; else undefined
};

/// Why a matrix cannot be in the layout; empty: it can.
std::string misfit(AwqConfig::Version version, std::int64_t inputs, std::int64_t outputs,
                   std::int64_t group_size);

/// The tensors that a checkpoint has in the layout `config` reads; without the bias.
std::vector<TensorSpec> layout_tensors(const ModuleSpec& spec, const AwqConfig& config);

/// Zero points that do not need the weight: of qzeros (and scales, for GEMVFast). uint8 [G, N];
/// undefined when GEMVFast's offsets are none. Without qzeros, as zero_point false allows, all 8.
at::Tensor read_zeros(const Tensors& tensors, std::int64_t inputs, std::int64_t outputs,
                      const AwqConfig& config);

/// Throws Error(model) naming the tensor.
Packed unpack(const Tensors& tensors, std::int64_t inputs, std::int64_t outputs,
              const AwqConfig& config);

/// Only the weight's codes, in another layout. Exact for every matrix that fits it.
at::Tensor pack_codes(const at::Tensor& qweight, std::int64_t outputs, AwqConfig::Version version);

/// Only "qzeros" and "scales". Throws Error(usage) when the layout cannot hold them exactly.
Tensors pack_groups(const Packed& packed, std::int64_t outputs, std::int64_t group_size,
                    AwqConfig::Version version);

/// All tensors in the layout. Throws Error(usage) when it cannot hold them exactly.
Tensors pack(const Packed& packed, std::int64_t outputs, std::int64_t group_size,
             AwqConfig::Version version);

}  // namespace graft::awq
