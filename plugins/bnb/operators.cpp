#include "operators.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <sstream>

#include "kernels/operator_arguments.h"
#include "linear8bit.h"
#include "quant_state.h"
#if GRAFT_HAS_CUDA
#include "cuda/fragment_tensors.h"
#include "kernels/four_bit_cuda.h"
#endif

namespace graft::bnb {
namespace {

using kernels::require_tensor;
using kernels::wrong_argument;

const std::vector<at::ScalarType> kFloats{at::kFloat, at::kHalf, at::kBFloat16};

QuantType type_of(std::string_view word) {
  if (word == "nf4") return QuantType::nf4;
  if (word == "fp4") return QuantType::fp4;
  throw wrong_argument("quant_type", "nf4 or fp4", quote(word));
}

void require_blocksize(std::int64_t blocksize) {
  if (blocksize < 32 || blocksize > 4096 || (blocksize & (blocksize - 1)) != 0)
    throw wrong_argument("blocksize", "a power of two from 32 to 4096", std::to_string(blocksize));
}

void require_dense(const at::Tensor& x, std::string_view quant_type, std::int64_t blocksize) {
  type_of(quant_type);
  require_blocksize(blocksize);
  require_tensor("x", x, kFloats, std::nullopt, x.device());
}

std::tuple<at::Tensor, at::Tensor> quantize_4bit_meta(const at::Tensor& x,
                                                      std::string_view quant_type,
                                                      std::int64_t blocksize) {
  require_dense(x, quant_type, blocksize);
  const auto out = empty_blocks(x.numel(), blocksize, x.device());
  return {out.packed, out.absmax};
}

std::tuple<at::Tensor, at::Tensor> quantize_4bit(const at::Tensor& x, std::string_view quant_type,
                                                 std::int64_t blocksize) {
  require_dense(x, quant_type, blocksize);
  const auto out = quantize_blocks(x, type_of(quant_type), blocksize);
  return {out.packed, out.absmax};
}

/// The number of elements in `shape`, which all arguments fit.
std::int64_t require_blocks(const at::Tensor& packed, const at::Tensor& absmax,
                            std::string_view quant_type, std::int64_t blocksize,
                            at::IntArrayRef shape, at::ScalarType dtype) {
  type_of(quant_type);
  require_blocksize(blocksize);
  std::int64_t count = 1;
  for (const auto size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) {
      std::ostringstream found;
      found << shape;
      throw wrong_argument("shape", "sizes whose product fits 63 bits", found.str());
    }
  if (std::find(kFloats.begin(), kFloats.end(), dtype) == kFloats.end())
    throw wrong_argument("dtype", "Float or Half or BFloat16", c10::toString(dtype));
  const std::int64_t bytes = count / 2 + count % 2;
  require_tensor("packed", packed, {at::kByte}, std::nullopt, packed.device());
  if (packed.numel() != bytes)
    throw wrong_argument("packed", std::to_string(bytes) + " bytes", kernels::words_of(packed));
  const std::int64_t blocks = count / blocksize + (count % blocksize != 0);
  require_tensor("absmax", absmax, {at::kFloat}, std::nullopt, packed.device());
  if (absmax.numel() != blocks)
    throw wrong_argument("absmax", std::to_string(blocks) + " elements", kernels::words_of(absmax));
  return count;
}

at::Tensor dequantize_4bit_meta(const at::Tensor& packed, const at::Tensor& absmax,
                                std::string_view quant_type, std::int64_t blocksize,
                                at::IntArrayRef shape, at::ScalarType dtype) {
  require_blocks(packed, absmax, quant_type, blocksize, shape, dtype);
  return at::empty(shape, packed.options().dtype(dtype));
}

at::Tensor dequantize_4bit(const at::Tensor& packed, const at::Tensor& absmax,
                           std::string_view quant_type, std::int64_t blocksize,
                           at::IntArrayRef shape, at::ScalarType dtype) {
  const auto count = require_blocks(packed, absmax, quant_type, blocksize, shape, dtype);
  const auto& table = code_table(type_of(quant_type));
  return dequantized_blocks(packed.contiguous().view({-1}),
                            at::tensor(c10::ArrayRef<float>(table.data(), table.size())),
                            absmax.contiguous(), blocksize, count)
      .to(dtype)
      .view(shape);
}

/// The number of rows of x [..., k].
std::int64_t rows_of(const std::string& name, const at::Tensor& x) {
  if (x.dim() < 1 || x.size(-1) < 1)
    throw wrong_argument(name, "[..., k] with k > 0", kernels::words_of(x));
  return x.numel() / x.size(-1);
}

std::tuple<at::Tensor, at::Tensor> int8_vectorwise_quant_meta(const at::Tensor& x) {
  require_tensor("x", x, kFloats, std::nullopt, x.device());
  return {at::empty(x.sizes(), x.options().dtype(at::kChar)),
          at::empty({rows_of("x", x)}, x.options().dtype(at::kFloat))};
}

std::tuple<at::Tensor, at::Tensor> int8_vectorwise_quant(const at::Tensor& x) {
  require_tensor("x", x, kFloats, std::nullopt, x.device());
  const std::int64_t rows = rows_of("x", x);
  const auto values = x.to(at::kFloat).contiguous();
  if (!values.isfinite().all().item<bool>())
    throw wrong_argument("x", "finite numbers", "NaN or infinity");
  auto [codes, absmax] = quantize_rows(values.view({rows, x.size(-1)}));
  return {codes.view(x.sizes()), absmax};
}

at::Tensor int8_vectorwise_dequant(const at::Tensor& codes, const at::Tensor& absmax) {
  require_tensor("codes", codes, {at::kChar}, std::nullopt, codes.device());
  const std::int64_t rows = rows_of("codes", codes);
  require_tensor("absmax", absmax, {at::kFloat}, std::vector<std::int64_t>{rows}, codes.device());
  return dequantize_rows(codes.reshape({rows, codes.size(-1)}), absmax).view(codes.sizes());
}

#if GRAFT_HAS_CUDA
/// As the kernels read it: whole vectors of 16 bytes from its beginning.
at::Tensor aligned(const at::Tensor& tensor) {
  const auto flat = tensor.contiguous();
  return reinterpret_cast<std::uintptr_t>(flat.const_data_ptr()) % 16 ? flat.clone() : flat;
}

std::tuple<at::Tensor, at::Tensor> quantize_4bit_cuda(const at::Tensor& x,
                                                      std::string_view quant_type,
                                                      std::int64_t blocksize) {
  require_dense(x, quant_type, blocksize);
  auto out = empty_blocks(x.numel(), blocksize, x.device());
  const c10::DeviceGuard guard(x.device());
  const auto values = aligned(x);
  const auto bad = at::zeros({1}, x.options().dtype(at::kInt));
  cuda::require(quantize_blocks_cuda(values.const_data_ptr(), cuda::dense_type(x.scalar_type()),
                                     x.numel(), blocksize, type_of(quant_type),
                                     out.packed.mutable_data_ptr<std::uint8_t>(),
                                     out.absmax.mutable_data_ptr<float>(),
                                     bad.mutable_data_ptr<int>(), cuda::stream_of(x.device())),
                "quantizing to 4 bits");
  if (bad.item<int>()) throw wrong_argument("x", "finite numbers", "NaN or infinity");
  return {out.packed, out.absmax};
}

at::Tensor dequantize_4bit_cuda(const at::Tensor& packed, const at::Tensor& absmax,
                                std::string_view quant_type, std::int64_t blocksize,
                                at::IntArrayRef shape, at::ScalarType dtype) {
  const auto count = require_blocks(packed, absmax, quant_type, blocksize, shape, dtype);
  auto out = at::empty(shape, packed.options().dtype(dtype));
  const c10::DeviceGuard guard(packed.device());
  const auto& levels = code_table(type_of(quant_type));
  const auto table =
      at::tensor(c10::ArrayRef<float>(levels.data(), levels.size())).to(packed.device());
  const auto bytes = aligned(packed), most = aligned(absmax);
  cuda::require(dequantize_blocks_cuda(bytes.const_data_ptr<std::uint8_t>(),
                                       table.const_data_ptr<float>(), most.const_data_ptr<float>(),
                                       blocksize, count, cuda::dense_type(dtype),
                                       out.mutable_data_ptr(), cuda::stream_of(packed.device())),
                "dequantizing 4 bits");
  return out;
}
#endif

}  // namespace

void register_operators() {
  // For ever: its destructor would take the operators back. Volatile, or the address, which nothing
  // reads, is not stored, and the memory counts as lost.
  static auto* const volatile library = [] {
    using c10::DispatchKey;
    auto* made =
        new torch::Library(torch::Library::DEF, "graft_bnb", std::nullopt, __FILE__, __LINE__);
    const auto impl = [&](const char* name, DispatchKey key, auto kernel) {
      made->impl(name, torch::dispatch(key, kernel));
    };
    made->def("quantize_4bit(Tensor x, str quant_type, int blocksize) -> (Tensor, Tensor)");
    impl("quantize_4bit", DispatchKey::CPU, TORCH_FN(quantize_4bit));
    impl("quantize_4bit", DispatchKey::Meta, TORCH_FN(quantize_4bit_meta));
    made->def(
        "dequantize_4bit(Tensor packed, Tensor absmax, str quant_type, int blocksize, int[] shape, "
        "ScalarType dtype) -> Tensor");
    impl("dequantize_4bit", DispatchKey::CPU, TORCH_FN(dequantize_4bit));
    impl("dequantize_4bit", DispatchKey::Meta, TORCH_FN(dequantize_4bit_meta));
    made->def("int8_vectorwise_quant(Tensor x) -> (Tensor, Tensor)");
    impl("int8_vectorwise_quant", DispatchKey::CPU, TORCH_FN(int8_vectorwise_quant));
    impl("int8_vectorwise_quant", DispatchKey::Meta, TORCH_FN(int8_vectorwise_quant_meta));
    made->def("int8_vectorwise_dequant(Tensor codes, Tensor absmax) -> Tensor");
    impl("int8_vectorwise_dequant", DispatchKey::CPU, TORCH_FN(int8_vectorwise_dequant));
    impl("int8_vectorwise_dequant", DispatchKey::Meta, TORCH_FN(int8_vectorwise_dequant));
#if GRAFT_HAS_CUDA
    impl("quantize_4bit", DispatchKey::CUDA, TORCH_FN(quantize_4bit_cuda));
    impl("dequantize_4bit", DispatchKey::CUDA, TORCH_FN(dequantize_4bit_cuda));
    impl("int8_vectorwise_dequant", DispatchKey::CUDA, TORCH_FN(int8_vectorwise_dequant));
#endif
    return made;
  }();
  static_cast<void>(library);
}

}  // namespace graft::bnb
