#include "operators.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels/operator_arguments.h"
#include "linear.h"
#include "quantizer.h"

namespace graft::awq {
namespace {

using MaybeTensor = std::optional<at::Tensor>;
using Version = AwqConfig::Version;

/// A weight as it lies in a file, with dtypes and shapes that fit.
struct Stored {
  ModuleSpec spec;
  std::shared_ptr<const AwqConfig> config;
  Tensors tensors;
};

Stored read(const at::Tensor& qweight, const at::Tensor& qzeros, const at::Tensor& scales,
            std::int64_t group_size, std::string_view version, const MaybeTensor& bias,
            at::ScalarType dtype) {
  Stored out;
  out.config = AwqConfig::parse(
      Value(Value::Object{{"group_size", group_size}, {"version", std::string(version)}}));
  kernels::require_matrix("qweight", qweight);
  const std::int64_t rows = qweight.size(0), columns = qweight.size(1);
  const auto read_as = out.config->read_as;
  out.spec.class_name = "Linear";
  out.spec.in_features = read_as == Version::gemm   ? rows
                         : read_as == Version::gemv ? columns * 8
                                                    : columns;
  out.spec.out_features = read_as == Version::gemm   ? columns * 8
                          : read_as == Version::gemv ? rows
                                                     : rows * 4;
  out.spec.bias = bias.has_value();
  out.spec.dtype = dtype;
  const AwqQuantizer quantizer;
  if (const auto support = quantizer.supports(out.spec, *out.config); !support.yes)
    throw kernels::wrong_argument("qweight", "a matrix of this layout", support.reason);
  out.tensors = {{"qweight", qweight}, {"qzeros", qzeros}, {"scales", scales}};
  if (bias) out.tensors.set("bias", *bias);
  kernels::require_tensors(out.tensors, quantizer.tensors(out.spec, *out.config), qweight.device());
  return out;
}

std::shared_ptr<WQLinear> module_of(const Stored& stored) {
  Tensors tensors;
  for (const auto& [name, tensor] : stored.tensors) tensors.set(name, tensor.cpu().contiguous());
  auto module = std::make_shared<WQLinear>(stored.spec, *stored.config);
  module->fill(tensors, *stored.config);
  module->to(stored.tensors.at("qweight").device());
  return module;
}

at::Tensor dequantize_meta(const at::Tensor& qweight, const at::Tensor& qzeros,
                           const at::Tensor& scales, std::int64_t group_size,
                           std::string_view version) {
  const auto stored = read(qweight, qzeros, scales, group_size, version, {}, at::kFloat);
  return at::empty({stored.spec.out_features, stored.spec.in_features}, scales.options());
}

at::Tensor dequantize(const at::Tensor& qweight, const at::Tensor& qzeros, const at::Tensor& scales,
                      std::int64_t group_size, std::string_view version) {
  return module_of(read(qweight, qzeros, scales, group_size, version, {}, at::kFloat))
      ->dequantize()
      .to(scales.scalar_type());
}

Stored read_product(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                    const at::Tensor& scales, std::int64_t group_size, const MaybeTensor& bias,
                    std::string_view version) {
  auto stored = read(qweight, qzeros, scales, group_size, version, bias, x.scalar_type());
  kernels::require_input(x, stored.spec.in_features, qweight.device());
  return stored;
}

at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                       const at::Tensor& scales, std::int64_t group_size, const MaybeTensor& bias,
                       std::string_view version) {
  const auto stored = read_product(x, qweight, qzeros, scales, group_size, bias, version);
  return at::empty(kernels::product_sizes(x, stored.spec.out_features), x.options());
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                  const at::Tensor& scales, std::int64_t group_size, const MaybeTensor& bias,
                  std::string_view version) {
  return module_of(read_product(x, qweight, qzeros, scales, group_size, bias, version))->forward(x);
}

}  // namespace

void register_operators() {
  // For ever: its destructor would take the operators back. Volatile, or the address, which nothing
  // reads, is not stored, and the memory counts as lost.
  static auto* const volatile library = [] {
    auto* made =
        new torch::Library(torch::Library::DEF, "graft_awq", std::nullopt, __FILE__, __LINE__);
    made->def(
        "dequantize(Tensor qweight, Tensor qzeros, Tensor scales, int group_size, "
        "str version=\"gemm\") -> Tensor");
    made->def(
        "linear(Tensor x, Tensor qweight, Tensor qzeros, Tensor scales, int group_size, "
        "Tensor? bias=None, str version=\"gemm\") -> Tensor");
    for (const auto key : {c10::DispatchKey::CPU,
#if GRAFT_HAS_CUDA
                           c10::DispatchKey::CUDA
#endif
         }) {
      made->impl("dequantize", torch::dispatch(key, TORCH_FN(dequantize)));
      made->impl("linear", torch::dispatch(key, TORCH_FN(linear)));
    }
    made->impl("dequantize", torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(dequantize_meta)));
    made->impl("linear", torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(linear_meta)));
    return made;
  }();
  static_cast<void>(library);
}

}  // namespace graft::awq
