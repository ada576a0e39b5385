#include "linear8bit.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "graft/error.h"
#include "kernels/int8.h"

namespace graft::bnb {
namespace {

constexpr double kOneOver127 = 7.874015718698502e-3;  // 1/127 as bitsandbytes writes it

}  // namespace

Linear8bitLt::Linear8bitLt(const ModuleSpec& spec, const BnbConfig& config)
    : Unary("Linear8bitLt"),
      in_features_(spec.in_features),
      out_features_(spec.out_features),
      threshold_(config.threshold),
      how_(config.int8_forward),
      keeps_master_(config.has_fp16_weight) {
  const auto meta = at::TensorOptions(at::kMeta);
  own("weight", weight, at::empty({out_features_, in_features_}, meta.dtype(at::kChar)));
  own("SCB", SCB, at::empty({out_features_}, meta.dtype(at::kFloat)));
  own("bias", bias, spec.bias ? at::empty({out_features_}, meta.dtype(spec.dtype)) : at::Tensor());
}

void Linear8bitLt::fill(const Tensors& tensors) {
  if (keeps_master_) {
    const auto* given = tensors.find("bias");
    return quantize(tensors.at("weight"), given ? *given : at::Tensor());
  }
  const auto* format = tensors.find("weight_format");
  format_ = format ? *format : at::Tensor();
  if (format && format->reshape({-1})[0].item<int>() != 0)
    throw Error(ErrorKind::model, "the int8 weight has a layout that only old GPUs used")
        .at("tensor 'weight_format'")
        .expected("0, row-major")
        .found(std::to_string(format->reshape({-1})[0].item<int>()))
        .hint("save the model again with a current bitsandbytes");
  const auto& scales = tensors.at("SCB");
  set_tensor("weight", tensors.at("weight").contiguous());
  set_tensor("SCB", scales.contiguous());
  if (const auto* given = tensors.find("bias")) set_tensor("bias", *given);
}

void Linear8bitLt::quantize(const at::Tensor& dense, const at::Tensor& given_bias) {
  const auto values = dense.to(at::kHalf).to(at::kFloat).contiguous();
  if (!at::isfinite(values).all().item<bool>())
    throw Error(ErrorKind::model,
                "the weight holds values that float16 does not have, through which int8 is made")
        .expected("magnitudes up to 65504")
        .hint("quantize to nf4 instead, or leave this module out");
  auto codes = at::empty({out_features_, in_features_}, at::kChar);
  auto scales = at::empty({out_features_}, at::kFloat);
  at::parallel_for(0, out_features_, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      scales.mutable_data_ptr<float>()[n] =
          quantize_row(values.const_data_ptr<float>() + n * in_features_, in_features_,
                       codes.mutable_data_ptr<std::int8_t>() + n * in_features_);
  });
  set_tensor("weight", codes);
  set_tensor("SCB", scales);
  if (keeps_master_)
    master_ = dense;
  else
    format_ = at::zeros({}, at::kByte);
  if (given_bias.defined()) set_tensor("bias", given_bias);
}

at::Tensor Linear8bitLt::multiply_in_int8(const at::Tensor& x) const {
  const auto half = x.to(at::kHalf);
  const auto values = half.to(at::kFloat);
  const auto is_outlier =
      threshold_ > 0 ? values.abs().ge(threshold_) : at::zeros_like(values, at::kBool);
  const auto inside = values.masked_fill(is_outlier, 0);
  const auto columns = is_outlier.any(0);
  const std::int64_t rows = values.size(0);
  auto codes = at::empty({rows, in_features_}, at::kChar);
  auto scales = at::empty({rows}, at::kFloat);
  for (std::int64_t m = 0; m < rows; ++m)
    scales.mutable_data_ptr<float>()[m] =
        quantize_row(inside.const_data_ptr<float>() + m * in_features_, in_features_,
                     codes.mutable_data_ptr<std::int8_t>() + m * in_features_);
  if (threshold_ > 0) codes.masked_fill_(columns, 0);
  auto sums = at::empty({rows, out_features_}, at::kInt);
  const DotInt8 dot = dot_int8();
  at::parallel_for(0, out_features_, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      for (std::int64_t m = 0; m < rows; ++m)
        sums.mutable_data_ptr<std::int32_t>()[m * out_features_ + n] =
            dot(codes.const_data_ptr<std::int8_t>() + m * in_features_,
                weight.const_data_ptr<std::int8_t>() + n * in_features_, in_features_);
  });
  auto y = sums.to(at::kFloat) * (scales.unsqueeze(1) * SCB) * (1.0 / 16129.0);
  if (threshold_ > 0 && columns.any().item<bool>()) {
    const auto which = columns.nonzero().squeeze(1);
    const auto part = (weight.index_select(1, which).to(at::kFloat) * SCB.unsqueeze(1) * kOneOver127)
                          .to(x.scalar_type());
    y = y + at::mm(x.index_select(1, which).to(at::kFloat), part.to(at::kFloat).t());
  }
  return y;
}

at::Tensor Linear8bitLt::forward(const at::Tensor& x) {
  auto input = x.reshape({-1, in_features_}).contiguous();
  at::Tensor y;
  if (how_ == BnbConfig::Int8Forward::dequant)
    y = at::mm(input, dequantize().to(x.scalar_type()).t());
  else
    y = multiply_in_int8(input);
  if (bias.defined()) y = y + bias.to(y.scalar_type());
  auto sizes = x.sizes().vec();
  sizes.back() = out_features_;
  return y.to(x.scalar_type()).view(sizes);
}

void Linear8bitLt::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = in_features_;
  spec.out_features = out_features_;
  spec.bias = bias.defined();
}

Tensors Linear8bitLt::stored() const {
  if (master_.defined()) return {{"weight", master_}};
  Tensors out{{"weight", weight}, {"SCB", SCB}};
  if (format_.defined()) out.set("weight_format", format_);
  return out;
}

at::Tensor Linear8bitLt::dequantize() const {
  return weight.to(at::kFloat) * SCB.unsqueeze(1) * kOneOver127;
}

}  // namespace graft::bnb
