#include "operators.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/operator_arguments.h"
#include "linear.h"
#include "quantizer.h"

namespace graft::gptq {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

/// A weight as it lies in a file, with dtypes and shapes that fit.
struct Stored {
  ModuleSpec spec;
  std::shared_ptr<const GptqConfig> config;
  Tensors tensors;
};

/// `inputs` 0: as many as the tensors say.
Stored read(const at::Tensor& qweight, const at::Tensor& qzeros, const at::Tensor& scales,
            const MaybeTensor& g_idx, std::int64_t bits, std::int64_t group_size, bool v2,
            const MaybeTensor& bias, std::int64_t inputs, at::ScalarType dtype) {
  Stored out;
  out.config =
      GptqConfig::parse(Value(Value::Object{{"bits", bits},
                                            {"group_size", group_size},
                                            {"desc_act", g_idx.has_value()},
                                            {"checkpoint_format", v2 ? "gptq_v2" : "gptq"}}));
  kernels::require_matrix("qweight", qweight);
  const std::int64_t words = qweight.size(0), most = words * 32 / bits;
  if (inputs == 0) inputs = g_idx ? g_idx->numel() : most;
  if (inputs < 1 || inputs > most || words_for(inputs, out.config->bits) != words)
    throw kernels::wrong_argument("qweight", "the words of " + std::to_string(inputs) + " inputs",
                                  kernels::words_of(qweight));
  out.spec.class_name = "Linear";
  out.spec.in_features = inputs;
  out.spec.out_features = qweight.size(1);
  out.spec.bias = bias.has_value();
  out.spec.dtype = dtype;
  out.tensors = {{"qweight", qweight}, {"qzeros", qzeros}, {"scales", scales}};
  if (g_idx) out.tensors.set("g_idx", *g_idx);
  if (bias) out.tensors.set("bias", *bias);
  kernels::require_tensors(out.tensors, GptqQuantizer().tensors(out.spec, *out.config),
                           qweight.device());
  return out;
}

std::shared_ptr<QuantLinear> module_of(const Stored& stored) {
  Tensors tensors;
  for (const auto& [name, tensor] : stored.tensors) tensors.set(name, tensor.cpu().contiguous());
  auto module = std::make_shared<QuantLinear>(stored.spec, *stored.config);
  module->fill(tensors, *stored.config);
  module->to(stored.tensors.at("qweight").device());
  return module;
}

at::Tensor dequantize_meta(const at::Tensor& qweight, const at::Tensor& qzeros,
                           const at::Tensor& scales, const MaybeTensor& g_idx, std::int64_t bits,
                           std::int64_t group_size, bool v2) {
  const auto stored = read(qweight, qzeros, scales, g_idx, bits, group_size, v2, {}, 0, at::kFloat);
  return at::empty({stored.spec.out_features, stored.spec.in_features}, scales.options());
}

at::Tensor dequantize(const at::Tensor& qweight, const at::Tensor& qzeros, const at::Tensor& scales,
                      const MaybeTensor& g_idx, std::int64_t bits, std::int64_t group_size,
                      bool v2) {
  return module_of(read(qweight, qzeros, scales, g_idx, bits, group_size, v2, {}, 0, at::kFloat))
      ->dequantize()
      .to(scales.scalar_type());
}

Stored read_product(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                    const at::Tensor& scales, const MaybeTensor& g_idx, std::int64_t bits,
                    std::int64_t group_size, bool v2, const MaybeTensor& bias) {
  auto stored = read(qweight, qzeros, scales, g_idx, bits, group_size, v2, bias,
                     x.dim() > 0 ? std::max<std::int64_t>(x.size(-1), 0) : 0, x.scalar_type());
  kernels::require_input(x, stored.spec.in_features, qweight.device());
  return stored;
}

at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                       const at::Tensor& scales, const MaybeTensor& g_idx, std::int64_t bits,
                       std::int64_t group_size, bool v2, const MaybeTensor& bias) {
  const auto stored = read_product(x, qweight, qzeros, scales, g_idx, bits, group_size, v2, bias);
  return at::empty(kernels::product_sizes(x, stored.spec.out_features), x.options());
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& qzeros,
                  const at::Tensor& scales, const MaybeTensor& g_idx, std::int64_t bits,
                  std::int64_t group_size, bool v2, const MaybeTensor& bias) {
  return module_of(read_product(x, qweight, qzeros, scales, g_idx, bits, group_size, v2, bias))
      ->forward(x);
}

}  // namespace

void register_operators() {
  // For ever: its destructor would take the operators back. Volatile, or the address, which nothing
  // reads, is not stored, and the memory counts as lost.
  static auto* const volatile library = [] {
    auto* made =
        new torch::Library(torch::Library::DEF, "graft_gptq", std::nullopt, __FILE__, __LINE__);
    made->def(
        "dequantize(Tensor qweight, Tensor qzeros, Tensor scales, Tensor? g_idx, int bits, "
        "int group_size, bool v2) -> Tensor");
    made->def(
        "linear(Tensor x, Tensor qweight, Tensor qzeros, Tensor scales, Tensor? g_idx, int bits, "
        "int group_size, bool v2, Tensor? bias=None) -> Tensor");
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

}  // namespace graft::gptq
