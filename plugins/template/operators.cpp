#include "operators.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "graft/pool.h"
#include "kernels/rows.h"

namespace org::example::rtn8 {
namespace {

/// Checks what a caller from Python may get wrong; gives an empty result.
at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales,
                       const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == at::kChar, "codes must be int8 [N, K]");
  TORCH_CHECK(x.dim() > 0 && x.is_floating_point() && x.size(-1) == codes.size(1),
              "x must be a float tensor [..., ", codes.size(1), "], found ", x.sizes());
  TORCH_CHECK(
      scales.dim() == 1 && scales.size(0) == codes.size(0) && scales.scalar_type() == at::kFloat,
      "scales must be float32 [", codes.size(0), "]");
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == codes.size(0)), "bias must be [",
              codes.size(0), "]");
  auto sizes = x.sizes().vec();
  sizes.back() = codes.size(0);
  return at::empty(sizes, x.options());
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales,
                  const std::optional<at::Tensor>& bias) {
  const auto y = linear_meta(x, codes, scales, bias);
  const auto input = x.to(at::kFloat).contiguous();
  const auto rows = codes.contiguous(), steps = scales.contiguous();
  const auto added = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  auto out = at::empty(y.sizes(), at::kFloat);
  RowsArgs args;
  args.x = input.const_data_ptr<float>();
  args.codes = rows.const_data_ptr<std::int8_t>();
  args.scales = steps.const_data_ptr<float>();
  args.bias = bias ? added.const_data_ptr<float>() : nullptr;
  args.y = out.mutable_data_ptr<float>();
  args.n = codes.size(0);
  args.k = codes.size(1);
  args.m = args.k ? input.numel() / args.k : 0;
  multiply_rows(args, graft::pool());
  return out.to(x.scalar_type());
}

void register_operators() {
  // For ever: its destructor would take the operators back.
  static auto* const library = new torch::Library(torch::Library::DEF, "graft_rtn8", std::nullopt,
                                                  __FILE__, __LINE__);
  library->def("linear(Tensor x, Tensor codes, Tensor scales, Tensor? bias) -> Tensor");
  library->impl("linear", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(linear)));
  library->impl("linear", torch::dispatch(c10::DispatchKey::Meta, TORCH_FN(linear_meta)));
}

}  // namespace org::example::rtn8
