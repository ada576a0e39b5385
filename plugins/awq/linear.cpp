#include "linear.h"

#include <ATen/ATen.h>

#include "graft/activations.h"
#include "graft/error.h"
#include "graft/pool.h"
#include "graft/rounding.h"
#include "kernels/dequantize.h"
#include "kernels/dequantized_product.h"
#include "kernels/format.h"
#include "kernels/repack.h"

namespace graft::awq {
namespace {

constexpr std::int64_t kPack = 8;  ///< outputs in a word

constexpr double kLargestHalf = 65504;

const std::uint32_t* words_of(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint32_t*>(tensor.const_data_ptr<std::int32_t>());
}

}  // namespace

WQLinear::WQLinear(const ModuleSpec& spec, const AwqConfig& config)
    : Unary("WQLinear"),
      in_features_(spec.in_features),
      out_features_(spec.out_features),
      group_size_(config.group_of(spec.in_features)),
      version_(config.read_as),
      model_dtype_(spec.dtype) {
  const auto meta = at::TensorOptions(at::kMeta);
  const std::int64_t groups = config.groups(in_features_);
  own("qweight", qweight, at::empty({in_features_, out_features_ / kPack}, meta.dtype(at::kInt)));
  own("scales", scales, at::empty({groups, out_features_}, meta.dtype(at::kHalf)));
  own("bias", bias, spec.bias ? at::empty({out_features_}, meta.dtype(spec.dtype)) : at::Tensor());
}

WQLinear::~WQLinear() {
  if (panels_.defined()) pool().drain();
}

void WQLinear::fill(const Tensors& tensors, const AwqConfig& config) {
  version_ = config.read_as;
  packed_ = unpack(tensors, in_features_, out_features_, config);
  set_tensor("qweight", packed_.qweight);
  set_tensor("scales", packed_.scales);
  small_ = {};
  for (const auto& [name, tensor] : tensors)
    if (name != "qweight" && name != "bias") small_.set(name, tensor);
  choose_weight_dtype();
  if (const auto* given = tensors.find("bias")) {
    if (bias.defined())
      set_tensor("bias", *given);
    else
      stray_bias_ = *given;
    if (bias.defined() || given->ne(0).any().item<bool>())
      float_bias_ = given->to(at::kFloat).contiguous();
  }
  make_panels();
}

void WQLinear::choose_weight_dtype() {
  constexpr double kMostSteps = 15;
  weight_dtype_ = model_dtype_ == at::kFloat ? scales.scalar_type() : model_dtype_;
  if (weight_dtype_ == at::kHalf && scales.abs().max().item<double>() * kMostSteps > kLargestHalf)
    weight_dtype_ = at::kFloat;
}

void WQLinear::make_panels() {
  if (panels_.defined()) pool().drain();
  panels_ = {};
  if (packed_.offsets.defined()) return;
  const auto shape =
      kernels::panel_shape(kernels::PanelKind::int4, out_features_, in_features_, group_size_);
  auto panels = kernels::empty_panels(shape);
  panels.scales = kernels::by_panel(shape, scales);
  panels.zeros = kernels::by_panel(shape, packed_.zeros);
  const auto* from = words_of(qweight);
  auto* codes = panels.codes.mutable_data_ptr<std::uint8_t>();
  for_each_chunk(pool(), shape.panels,
                 [&](std::int64_t panel) { pack(shape, from, panel, panel + 1, codes); });
  panels_ = std::move(panels);
  // From here on the panels are the only copy.
  packed_ = {};
  if (version_ != AwqConfig::Version::gemv_fast)
    for (const auto& [name, tensor] : pack_groups(unpacked(), out_features_, group_size_, version_))
      if (const auto* as_came = small_.find(name); as_came && as_came->equal(tensor))
        small_.set(name, at::Tensor());
  set_tensor("qweight", kernels::stand_in(panels_.codes.view(at::kInt), qweight));
  set_tensor("scales", kernels::stand_in(panels_.scales, scales));
}

void WQLinear::give_up_panels() {
  packed_ = unpacked();
  set_tensor("scales", packed_.scales);
  small_ = small_as_in_file();
  pool().drain();
  panels_ = {};
}

Tensors WQLinear::small_as_in_file() const {
  Tensors packed, out;
  for (const auto& [name, tensor] : small_) {
    if (!tensor.defined() && packed.empty())
      packed = pack_groups(unpacked(), out_features_, group_size_, version_);
    out.set(name, tensor.defined() ? tensor : packed.at(name));
  }
  return out;
}

Packed WQLinear::unpacked() const {
  Packed out = packed_;
  if (panels_.defined()) {
    out.scales = kernels::by_group(panels_.shape, panels_.scales, 0, out_features_);
    out.zeros = kernels::by_group(panels_.shape, panels_.zeros, 0, out_features_);
  }
  return out;
}

at::Tensor WQLinear::words(std::int64_t first, std::int64_t count) const {
  const auto panels = device_weight_.is_packed() ? device_weight_.panels() : panels_;
  if (!panels.defined()) return qweight.narrow(1, first / kPack, count / kPack);
  auto out = at::empty({in_features_, count / kPack}, at::kInt);
  auto* to = reinterpret_cast<std::uint32_t*>(out.mutable_data_ptr<std::int32_t>());
  unpack(panels.shape, panels.view().codes, first / kernels::kPanelWidth,
         (first + count + kernels::kPanelWidth - 1) / kernels::kPanelWidth, to, count / kPack);
  return out;
}

at::Tensor WQLinear::columns(std::int64_t first, std::int64_t count) const {
  auto out = at::empty({in_features_, count}, at::kFloat);
  const auto part = [&](const at::Tensor& whole, const at::Tensor& of_panels) {
    const auto some = of_panels.defined()
                          ? kernels::by_group(panels_.shape, of_panels, first, count)
                          : whole.narrow(1, first, count);
    return some.to(weight_dtype_).to(at::kFloat).contiguous();
  };
  const auto some_scales = part(scales, panels_.scales);
  const auto some_zeros = part(packed_.zeros, panels_.zeros);
  const auto some_offsets = packed_.offsets.defined() ? part(packed_.offsets, {}) : at::Tensor();
  const auto packed = words(first, count);
  const Columns columns{words_of(packed),
                        packed.stride(0),
                        in_features_,
                        count,
                        group_size_,
                        some_scales.const_data_ptr<float>(),
                        some_zeros.const_data_ptr<float>(),
                        some_offsets.defined() ? some_offsets.const_data_ptr<float>() : nullptr};
  awq::dequantize()(columns, out.mutable_data_ptr<float>());
  return out.to(weight_dtype_);
}

void WQLinear::to_cuda(const c10::Device& device) {
  if (device_weight_.defined()) to_cpu();
  // Scales that do not fit into half precision have no kernel there.
  device_weight_.take(weight_dtype_ == at::kFloat ? kernels::PanelTensors() : panels_,
                      weight_dtype_, device, [this] { return dequantize(); });
  if (device_weight_.is_packed()) {
    // From here on the device's is the only copy.
    give_up_panels();
    set_tensor("qweight", device_weight_.codes_as(qweight));
  }
  if (float_bias_.defined()) float_bias_ = float_bias_.to(device);
}

void WQLinear::to_cpu() {
  if (device_weight_.is_packed()) {
    const auto codes = words(0, out_features_);
    device_weight_.reset();
    set_tensor("qweight", codes);
    packed_.qweight = codes;
    make_panels();
  }
  device_weight_.reset();
  if (float_bias_.defined()) float_bias_ = float_bias_.cpu();
}

void WQLinear::to(torch::Device device, bool non_blocking) {
  if (device.is_cuda()) return to_cuda(device);
  if (device_weight_.defined()) to_cpu();
  Unary::to(device, non_blocking);
}

at::Tensor WQLinear::forward(const at::Tensor& x) {
  if (device_weight_.defined()) return device_weight_.multiply(x, float_bias_);
  const auto mode = static_cast<graft_activation_mode>(activations().mode());
  const auto act = kernels::choose_act(mode, x.scalar_type());
  if (panels_.defined() && act != kernels::Act::f32)
    return kernels::multiply(panels_, x, float_bias_, act, pool());
  const bool wide = act == kernels::Act::f32 || weight_dtype_ == at::kFloat;
  return kernels::multiply_dequantized(
      x, in_features_, out_features_, float_bias_, wide ? at::kFloat : x.scalar_type(),
      [this](std::int64_t first, std::int64_t count) { return columns(first, count); });
}

at::Tensor WQLinear::forward_segments(const at::Tensor& x, std::span<const Segment> segments) {
  return cuda::multiply_segments(x, segments, &WQLinear::device_weight_, &WQLinear::float_bias_);
}

at::Tensor WQLinear::divide_output(const at::Tensor& divisor) {
  Packed whole = unpacked();
  if (device_weight_.defined() || whole.offsets.defined()) return {};
  const auto before = whole.scales.to(at::kFloat);
  whole.scales = (before / divisor).to(whole.scales.scalar_type());
  const auto after = whole.scales.to(at::kFloat);
  if (!after.isfinite().all().item<bool>() || !after.ne(0).eq(before.ne(0)).all().item<bool>())
    return {};
  small_ = pack_groups(whole, out_features_, group_size_, version_);
  whole.qweight = words(0, out_features_);
  set_tensor("qweight", whole.qweight);
  set_tensor("scales", whole.scales);
  packed_ = std::move(whole);
  choose_weight_dtype();
  if (bias.defined()) set_tensor("bias", (bias.to(at::kFloat) / divisor).to(bias.scalar_type()));
  if (stray_bias_.defined())
    stray_bias_ = (stray_bias_.to(at::kFloat) / divisor).to(stray_bias_.scalar_type());
  if (float_bias_.defined())
    float_bias_ = (bias.defined() ? bias : stray_bias_).to(at::kFloat).contiguous();
  make_panels();
  // Each group's scale is rounded for itself: a channel is divided by this on the whole.
  const auto left = after.abs().sum(0);
  return at::where(left > 0, before.abs().sum(0) / left, divisor);
}

std::unique_ptr<nn::RowProduct> WQLinear::row_product(at::ScalarType dtype) const {
  const auto mode = static_cast<graft_activation_mode>(activations().mode());
  const auto act = kernels::choose_act(mode, dtype);
  if (!panels_.defined() || act == kernels::Act::f32) return nullptr;
  return kernels::row_product(panels_, float_bias_, act);
}

void WQLinear::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = in_features_;
  spec.out_features = out_features_;
  spec.bias = bias.defined();
  spec.dtype = weight_dtype_;
}

Tensors WQLinear::stored(AwqConfig::Version version) const {
  Tensors out;
  if (version == version_) {
    out.set("qweight", pack_codes(words(0, out_features_), out_features_, version));
    for (const auto& [name, tensor] : small_as_in_file()) out.set(name, tensor);
  } else {
    Packed whole = unpacked();
    whole.qweight = words(0, out_features_);
    out = pack(whole, out_features_, group_size_, version);
  }
  if (bias.defined()) out.set("bias", bias);
  if (stray_bias_.defined()) out.set("bias", stray_bias_);
  return out;
}

at::Tensor WQLinear::dequantize() const {
  if (device_weight_.defined()) return device_weight_.dequantized(weight_dtype_);
  return kernels::dequantized(
      in_features_, out_features_, weight_dtype_,
      [this](std::int64_t first, std::int64_t count) { return columns(first, count); });
}

at::Tensor WQLinear::codes() const {
  const auto packed = words(0, out_features_).contiguous();
  auto out = at::empty({in_features_, out_features_}, at::kByte);
  unpack_gemm(words_of(packed), out.numel(), out.mutable_data_ptr<std::uint8_t>());
  return out;
}

WeightNeighbours WQLinear::neighbours() const {
  const Packed whole = unpacked();
  const auto of_inputs = [&](const at::Tensor& of_groups) {
    return of_groups.repeat_interleave(group_size_, 0).narrow(0, 0, in_features_).t();
  };
  return neighbours_of(codes().t(), of_inputs(whole.zeros), of_inputs(whole.scales), 15);
}

}  // namespace graft::awq
