#include "linear8bit.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#if GRAFT_HAS_CUDA
#include "cuda/packed_tensors.h"
#include "kernels/int8_cuda.h"
#endif
#include "graft/error.h"
#include "graft/nn/product.h"
#include "graft/pool.h"
#include "kernels/int8.h"
#include "kernels/row_int8.h"

namespace graft::bnb {
namespace {

using kernels::kPanelWidth;

constexpr double kOneOver127 = 7.874015718698502e-3;  // 1/127 as bitsandbytes writes it

}  // namespace

Int8Rows quantize_rows(const at::Tensor& values) {
  const std::int64_t rows = values.size(0), columns = values.size(1);
  Int8Rows out{at::empty({rows, columns}, at::kChar), at::empty({rows}, at::kFloat)};
  at::parallel_for(0, rows, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n)
      out.absmax.mutable_data_ptr<float>()[n] =
          quantize_row(values.const_data_ptr<float>() + n * columns, columns,
                       out.codes.mutable_data_ptr<std::int8_t>() + n * columns);
  });
  return out;
}

at::Tensor dequantize_rows(const at::Tensor& codes, const at::Tensor& absmax) {
  return codes.to(at::kFloat) * absmax.unsqueeze(1) * kOneOver127;
}

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

Linear8bitLt::~Linear8bitLt() {
  if (panels_.defined()) pool().drain();
}

void Linear8bitLt::fill(const Tensors& tensors) {
  if (keeps_master_) {
    const auto* given = tensors.find("bias");
    return quantize(tensors.at("weight"), given ? *given : at::Tensor());
  }
  const auto* format = tensors.find("weight_format");
  format_ = format ? *format : at::Tensor();
  if (format && format->numel() != 1)
    throw Error(ErrorKind::model, "the tensor has a wrong size")
        .at("tensor 'weight_format'")
        .expected("one number")
        .found(std::to_string(format->numel()))
        .hint("download the file again, or save the model again with a current bitsandbytes");
  if (format && format->item<int>() != 0)
    throw Error(ErrorKind::model, "the int8 weight has a layout that only old GPUs used")
        .at("tensor 'weight_format'")
        .expected("0, row-major")
        .found(std::to_string(format->item<int>()))
        .hint("save the model again with a current bitsandbytes");
  const auto& scales = tensors.at("SCB");
  pack(tensors.at("weight").contiguous());
  set_tensor("SCB", scales.contiguous());
  if (const auto* given = tensors.find("bias")) take_bias(*given);
}

void Linear8bitLt::take_bias(const at::Tensor& given) {
  set_tensor("bias", given);
  float_bias_ = given.to(at::kFloat).contiguous();
}

void Linear8bitLt::quantize(const at::Tensor& dense, const at::Tensor& given_bias) {
  const auto values = dense.to(at::kHalf).to(at::kFloat).contiguous();
  if (!at::isfinite(values).all().item<bool>())
    throw Error(ErrorKind::model,
                "the weight holds values that float16 does not have, through which int8 is made")
        .expected("magnitudes up to 65504")
        .hint("quantize to nf4 instead, or leave this module out");
  const auto [codes, scales] = quantize_rows(values);
  pack(codes);
  set_tensor("SCB", scales);
  if (keeps_master_)
    master_ = dense;
  else
    format_ = at::zeros({}, at::kByte);
  if (given_bias.defined()) take_bias(given_bias);
}

void Linear8bitLt::pack(const at::Tensor& given) {
  const auto shape =
      kernels::panel_shape(kernels::PanelKind::int8, out_features_, in_features_, in_features_);
  if (panels_.defined()) pool().drain();
  kernels::PanelTensors out;
  out.shape = shape;
  out.codes = at::empty({shape.code_bytes}, at::kByte);
  auto* codes = out.codes.mutable_data_ptr<std::uint8_t>();
  struct Source {
    const std::int8_t* data;
    std::int64_t n, k;
  } source{given.const_data_ptr<std::int8_t>(), out_features_, in_features_};
  const auto read = [](const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                       std::uint8_t* to) {
    const auto& from = *static_cast<const Source*>(self);
    const std::int64_t width = std::min(kPanelWidth, from.n - panel * kPanelWidth);
    for (std::int64_t j = 0; j < width; ++j) {
      const std::int8_t* row = from.data + (panel * kPanelWidth + j) * from.k + first;
      for (std::int64_t i = 0; i < count; ++i)
        to[i * kPanelWidth + j] = static_cast<std::uint8_t>(row[i] + 128);
    }
  };
  for_each_chunk(pool(), shape.panels, [&](std::int64_t panel) {
    kernels::pack_panels(shape, {+read, &source}, panel, panel + 1, codes);
  });
  panels_ = std::move(out);
  set_tensor("weight", panels_.codes.narrow(0, 0, out_features_ * in_features_)
                           .view(at::kChar)
                           .view({out_features_, in_features_}));
}

at::Tensor Linear8bitLt::rows(bool pinned) const {
#if GRAFT_HAS_CUDA
  if (device_rows_.defined()) return device_rows_.cpu();
#endif
  auto out = at::empty({out_features_, in_features_},
                       at::TensorOptions(at::kChar).pinned_memory(pinned));
  auto* to = out.mutable_data_ptr<std::int8_t>();
  const auto* codes = panels_.codes.const_data_ptr<std::uint8_t>();
  for_each_chunk(pool(), panels_.shape.panels, [&](std::int64_t panel) {
    const std::int64_t end = std::min((panel + 1) * kPanelWidth, out_features_);
    for (std::int64_t n = panel * kPanelWidth; n < end; ++n)
      for (std::int64_t k = 0; k < in_features_; ++k)
        to[n * in_features_ + k] =
            static_cast<std::int8_t>(kernels::code_at(panels_.shape, codes, n, k) - 128);
  });
  return out;
}

#if GRAFT_HAS_CUDA
void Linear8bitLt::to_cuda(const c10::Device& device) {
  device_rows_ = cuda::upload(rows(/*pinned=*/true), device);
  pool().drain();
  panels_ = {};
  set_tensor("weight", device_rows_);
  set_tensor("SCB", SCB.to(device));
  if (float_bias_.defined()) float_bias_ = float_bias_.to(device);
}

void Linear8bitLt::to_cpu() {
  const auto codes = rows();
  device_rows_.reset();
  pack(codes);
  set_tensor("SCB", SCB.cpu());
  if (float_bias_.defined()) float_bias_ = float_bias_.cpu();
}

at::Tensor Linear8bitLt::multiply_on_device(const at::Tensor& x) const {
  const c10::DeviceGuard guard(device_rows_.device());
  auto sizes = x.sizes().vec();
  sizes.back() = out_features_;
  const auto input = x.reshape({-1, in_features_}).contiguous();
  auto y = at::empty({input.size(0), out_features_}, input.options());
  RowInt8Cuda args;
  args.weight = device_rows_.const_data_ptr<std::int8_t>();
  args.scales = SCB.const_data_ptr<float>();
  args.threshold = static_cast<float>(threshold_);
  args.m = input.size(0);
  args.n = out_features_;
  args.k = in_features_;
  args.type = cuda::dense_type(x.scalar_type());
  args.x = input.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.bias = float_bias_.defined() ? float_bias_.const_data_ptr<float>() : nullptr;
  const auto memory =
      at::empty({static_cast<std::int64_t>(row_int8_workspace(args.m, args.k))},
                input.options().dtype(at::kByte));
  args.workspace = memory.mutable_data_ptr();
  cuda::require(multiply_rows_int8_cuda(args, cuda::stream_of(device_rows_.device())),
                "an int8 product");
  return y.view(sizes);
}
#endif

void Linear8bitLt::to(torch::Device device, bool non_blocking) {
#if GRAFT_HAS_CUDA
  if (device.is_cuda()) return to_cuda(device);
  if (device_rows_.defined()) to_cpu();
#endif
  Unary::to(device, non_blocking);
}

at::Tensor Linear8bitLt::forward(const at::Tensor& x) {
#if GRAFT_HAS_CUDA
  // The kernel takes rows of whole 16 bytes; others multiply dequantized.
  const bool whole = in_features_ % 16 == 0;
  if (device_rows_.defined() && how_ == BnbConfig::Int8Forward::llm_int8 && whole)
    return multiply_on_device(x);
  if (device_rows_.defined())
    return at::linear(x, dequantize().to(x.scalar_type()),
                      float_bias_.defined() ? float_bias_.to(x.scalar_type()) : float_bias_);
#endif
  auto sizes = x.sizes().vec();
  sizes.back() = out_features_;
  const auto input = x.contiguous();
  if (how_ == BnbConfig::Int8Forward::dequant) {
    const auto y = nn::linear(input, dequantize().to(x.scalar_type()));
    return bias.defined() ? y + bias.to(y.scalar_type()) : y;
  }
  auto y = at::empty(sizes, input.options());
  kernels::RowInt8Args args;
  args.shape = &panels_.shape;
  args.codes = panels_.codes.const_data_ptr<std::uint8_t>();
  args.scales = SCB.const_data_ptr<float>();
  args.threshold = static_cast<float>(threshold_);
  args.m = input.numel() / in_features_;
  args.x = input.const_data_ptr();
  args.x_type = args.y_type = kernels::element_type(x.scalar_type());
  args.x_stride = in_features_;
  args.y = y.mutable_data_ptr();
  args.y_stride = out_features_;
  args.bias = float_bias_.defined() ? float_bias_.const_data_ptr<float>() : nullptr;
  kernels::multiply_rows_int8(args, pool());
  return y;
}

void Linear8bitLt::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = in_features_;
  spec.out_features = out_features_;
  spec.bias = bias.defined();
}

Tensors Linear8bitLt::stored() const {
  if (master_.defined()) return {{"weight", master_}};
  Tensors out{{"weight", rows()}, {"SCB", SCB.cpu()}};
  if (format_.defined()) out.set("weight_format", format_);
  return out;
}

at::Tensor Linear8bitLt::dequantize() const {
#if GRAFT_HAS_CUDA
  if (device_rows_.defined()) return dequantize_rows(device_rows_, SCB);
#endif
  return dequantize_rows(rows(), SCB);
}

}  // namespace graft::bnb
