#pragma once

namespace graft::bnb {

/// Makes torch.ops.graft_bnb for the CPU and meta, and the first two and the last for CUDA where it
/// is built. Throws c10::Error when another library has the name. Names and layouts are those of
/// bitsandbytes' functional.py.
///
///   quantize_4bit(x, quant_type, blocksize) -> packed uint8 [ceil(n / 2), 1], absmax float32
///       [ceil(n / blocksize)], of the n elements of x row by row
///   dequantize_4bit(packed, absmax, quant_type, blocksize, shape, dtype) -> shape, in dtype
///   int8_vectorwise_quant(x) -> int8 as x, absmax float32 [rows]: the last dimension by its
///   largest
///       magnitude. Without bitsandbytes' threshold, by which columns of x may stay out
///   int8_vectorwise_dequant(codes, absmax) -> float32 as codes: codes * absmax / 127
///
/// x and dtype are float32, float16 or bfloat16; quant_type is "nf4" or "fp4", blocksize a power of
/// two from 32 to 4096; all tensors are on one device. NaN and infinity in x, and what does not
/// fit, throw Error naming the argument.
void register_operators();

}  // namespace graft::bnb
