#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "graft/module_spec.h"
#include "graft/tensors.h"
#include "kernels/code_tables.h"

namespace graft::bnb {

inline constexpr std::int64_t kBlock = 64;         ///< elements of a block that graft writes
inline constexpr std::int64_t kNestedBlock = 256;  ///< blocks that share a nested absmax

/// What a checkpoint says of one 4-bit weight, checked and decoded. Layout: formats of
/// bitsandbytes' QuantState.as_dict.
struct QuantState {
  QuantType type = QuantType::nf4;
  std::int64_t blocksize = kBlock;
  at::ScalarType dtype =
      at::kFloat;     ///< of the weight before quantization and after dequantization
  at::Tensor table;   ///< [16] float32
  at::Tensor absmax;  ///< [ceil(N * K / blocksize)] float32, double quantization undone
};

/// The name of the JSON blob, which tells the type.
std::string blob_name(QuantType type);

/// Reads "weight.absmax" and its companions. Throws Error(model) naming the tensor.
QuantState read_quant_state(const Tensors& tensors, std::int64_t rows, std::int64_t columns);

/// A quantized weight in the checkpoint's layout, under the names relative to the module.
struct QuantizedWeight {
  Tensors stored;
  QuantState state;
};

/// Packed bytes as a column of `storage` elements. Throws Error(usage) when they do not fill whole
/// ones.
at::Tensor stored_as(const at::Tensor& packed, at::ScalarType storage);

/// absmax under double quantization, and what it then is.
struct NestedAbsmax {
  at::Tensor codes;   ///< [blocks] uint8
  at::Tensor nested;  ///< [ceil(blocks / 256)] float32
  float offset = 0;
  at::Tensor absmax;  ///< [blocks] float32
};
NestedAbsmax nest_absmax(const at::Tensor& absmax);

/// The checkpoint's tensors for `packed` [ceil(N * K / 2), 1] uint8 and `absmax`, of a dense `weight`
/// [N, K] whose shape and dtype are noted.
QuantizedWeight with_quant_state(const at::Tensor& packed, const at::Tensor& absmax,
                                 const at::Tensor& weight, QuantType type,
                                 const std::optional<NestedAbsmax>& nested, at::ScalarType storage);

/// Blocks of consecutive elements as they lie in a file.
struct Blocks {
  at::Tensor packed;  ///< uint8 [ceil(count / 2), 1]
  at::Tensor absmax;  ///< float32 [ceil(count / blocksize)]
};
Blocks empty_blocks(std::int64_t count, std::int64_t blocksize, const c10::Device& device);
/// `x` on the CPU, float32, float16 or bfloat16; `blocksize` is even. Throws Error(model) when it
/// is not finite.
Blocks quantize_blocks(const at::Tensor& x, QuantType type, std::int64_t blocksize);
/// float32 [count]. `bytes` uint8 [ceil(count / 2)], `table` [16] and `absmax` float32, contiguous.
at::Tensor dequantized_blocks(const at::Tensor& bytes, const at::Tensor& table,
                              const at::Tensor& absmax, std::int64_t blocksize, std::int64_t count);

/// `weight` [N, K] float32, float16 or bfloat16, finite. `storage`: the type that the packed bytes
/// are written as.
QuantizedWeight quantize_weight(const at::Tensor& weight, QuantType type, bool double_quant,
                                at::ScalarType storage);

}  // namespace graft::bnb
