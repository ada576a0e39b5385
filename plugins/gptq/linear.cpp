#include "linear.h"

#include <ATen/ATen.h>

#include <utility>

#include "graft/activations.h"
#include "graft/error.h"
#include "graft/pool.h"
#include "groups.h"
#include "kernels/dequantize.h"
#include "kernels/dequantized_product.h"
#include "kernels/repack.h"

namespace graft::gptq {
namespace {

constexpr double kLargestHalf = 65504;

const std::uint32_t* words_of(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint32_t*>(tensor.const_data_ptr<std::int32_t>());
}
std::uint32_t* words_of(at::Tensor& tensor) {
  return reinterpret_cast<std::uint32_t*>(tensor.mutable_data_ptr<std::int32_t>());
}

}  // namespace

QuantLinear::QuantLinear(const ModuleSpec& spec, const GptqConfig& config)
    : Unary("QuantLinear"),
      in_features_(spec.in_features),
      out_features_(spec.out_features),
      bits_(config.bits),
      model_dtype_(spec.dtype) {
  const auto meta = at::TensorOptions(at::kMeta);
  const std::int64_t groups = config.groups(in_features_);
  own("qweight", qweight,
      at::empty({words_for(in_features_, bits_), out_features_}, meta.dtype(at::kInt)));
  own("qzeros", qzeros, at::empty({groups, words_for(out_features_, bits_)}, meta.dtype(at::kInt)));
  own("scales", scales, at::empty({groups, out_features_}, meta.dtype(at::kHalf)));
  own("bias", bias, spec.bias ? at::empty({out_features_}, meta.dtype(spec.dtype)) : at::Tensor());
}

QuantLinear::~QuantLinear() {
  if (panels_.defined()) pool().drain();
}

void QuantLinear::fill(const Tensors& tensors, const GptqConfig& config) {
  const auto* g_idx = tensors.find("g_idx");
  group_ = find_groups(g_idx ? *g_idx : at::Tensor(), in_features_, config).of_input;
  g_idx_ = g_idx ? *g_idx : at::Tensor();
  for (const char* name : {"qweight", "qzeros", "scales"})
    set_tensor(name, tensors.at(name).contiguous());
  zero_rule_ = config.zero_rule();
  const std::int64_t groups = scales.size(0);
  zeros_ = at::empty({groups, out_features_}, at::kShort);
  auto* zeros = reinterpret_cast<std::uint16_t*>(zeros_.mutable_data_ptr<std::int16_t>());
  for (std::int64_t g = 0; g < groups; ++g)
    decode_zeros(words_of(std::as_const(qzeros)) + g * qzeros.size(1), out_features_, bits_,
                 zero_rule_, zeros + g * out_features_);
  weight_dtype_ = model_dtype_ == at::kFloat ? scales.scalar_type() : model_dtype_;
  const double most = static_cast<double>(1 << bits_);
  if (weight_dtype_ == at::kHalf && scales.abs().max().item<double>() * most > kLargestHalf)
    weight_dtype_ = at::kFloat;
  if (const auto* given = tensors.find("bias")) {
    if (bias.defined())
      set_tensor("bias", *given);
    else
      stray_bias_ = *given;
    if (bias.defined() || given->ne(0).any().item<bool>())
      float_bias_ = given->to(at::kFloat).contiguous();
  }
  group_size_ = config.group_of(in_features_);
  make_panels();
}

void QuantLinear::make_panels() {
  if (panels_.defined()) pool().drain();
  panels_ = {};
  if (!whole_words(in_features_, bits_)) return;
  auto sorting = sort_by_group(group_.const_data_ptr<std::int32_t>(), in_features_, group_size_);
  if (!sorting.even) return;
  const auto shape =
      kernels::panel_shape(panel_kind(bits_), out_features_, in_features_, group_size_);
  auto panels = kernels::empty_panels(shape);
  if (!sorting.order.empty()) panels.order = at::tensor(sorting.order, at::kInt);
  const auto groups = at::tensor(sorting.groups, at::kInt);
  const auto order_of = [&](const at::Tensor& values, at::ScalarType type) {
    return kernels::by_panel(shape, values.index_select(0, groups).to(type));
  };
  panels.scales = order_of(scales, at::kFloat);
  panels.zeros = order_of(zeros_, panels.zeros.scalar_type());
  const PackedWords from{words_of(qweight), out_features_, bits_, panels.view().order};
  auto* codes = panels.codes.mutable_data_ptr<std::uint8_t>();
  for_each_chunk(pool(), shape.panels,
                 [&](std::int64_t panel) { pack(shape, from, panel, panel + 1, codes); });
  panels_ = std::move(panels);
  // From here on the panels are the only copy.
  set_tensor("qweight",
             panels_.codes.narrow(0, 0, 4 * qweight.numel()).view(at::kInt).view(qweight.sizes()));
}

at::Tensor QuantLinear::words(std::int64_t first, std::int64_t count) const {
  const auto panels = device_weight_.is_packed() ? device_weight_.panels() : panels_;
  if (!panels.defined()) return qweight.narrow(1, first, count);
  auto out = at::zeros({qweight.size(0), count}, at::kInt);
  const PackedWords to{words_of(out), count, bits_, panels.view().order};
  unpack(panels.shape, panels.view().codes, first / kernels::kPanelWidth,
         (first + count + kernels::kPanelWidth - 1) / kernels::kPanelWidth, to);
  return out;
}

at::Tensor QuantLinear::columns(std::int64_t first, std::int64_t count) const {
  auto out = at::empty({in_features_, count}, at::kFloat);
  const auto packed = words(first, count);
  const auto some_scales =
      scales.narrow(1, first, count).to(weight_dtype_).to(at::kFloat).contiguous();
  const auto some_zeros = zeros_.narrow(1, first, count).to(at::kFloat).contiguous();
  const Columns columns{words_of(packed),
                        packed.stride(0),
                        in_features_,
                        count,
                        bits_,
                        group_.const_data_ptr<std::int32_t>(),
                        some_scales.const_data_ptr<float>(),
                        some_zeros.const_data_ptr<float>()};
  gptq::dequantize()(columns, out.mutable_data_ptr<float>());
  return out.to(weight_dtype_);
}

void QuantLinear::to_cuda(const c10::Device& device) {
  if (device_weight_.defined()) to_cpu();
  // Scales that do not fit into half precision have no kernel there.
  device_weight_.take(weight_dtype_ == at::kFloat ? kernels::PanelTensors() : panels_,
                      weight_dtype_, device, [this] { return dequantize(); });
  if (device_weight_.is_packed()) {
    // From here on the device's is the only copy.
    pool().drain();
    panels_ = {};
    set_tensor("qweight", device_weight_.codes_as(qweight));
  }
  if (float_bias_.defined()) float_bias_ = float_bias_.to(device);
}

void QuantLinear::to_cpu() {
  if (device_weight_.is_packed()) {
    const auto codes = words(0, out_features_);
    device_weight_.reset();
    set_tensor("qweight", codes);
    make_panels();
  }
  device_weight_.reset();
  if (float_bias_.defined()) float_bias_ = float_bias_.cpu();
}

void QuantLinear::to(torch::Device device, bool non_blocking) {
  if (device.is_cuda()) return to_cuda(device);
  if (device_weight_.defined()) to_cpu();
  Unary::to(device, non_blocking);
}

at::Tensor QuantLinear::forward(const at::Tensor& x) {
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

std::unique_ptr<nn::RowProduct> QuantLinear::row_product(at::ScalarType dtype) const {
  const auto mode = static_cast<graft_activation_mode>(activations().mode());
  const auto act = kernels::choose_act(mode, dtype);
  if (!panels_.defined() || act == kernels::Act::f32) return nullptr;
  return kernels::row_product(panels_, float_bias_, act);
}

void QuantLinear::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = in_features_;
  spec.out_features = out_features_;
  spec.bias = bias.defined();
  spec.dtype = weight_dtype_;
}

Tensors QuantLinear::stored(GptqConfig::Format format) const {
  const bool is_v2 = zero_rule_ == ZeroRule::plain, wants_v2 = format == GptqConfig::Format::v2;
  auto zeros = qzeros;
  if (is_v2 != wants_v2) {
    if (zero_rule_ == ZeroRule::unmasked && zeros_.ge(1 << bits_).any().item<bool>())
      throw Error(ErrorKind::usage, "the zero points do not fit into the other format")
          .at("tensor 'qzeros'")
          .expected("at most " + std::to_string((1 << bits_) - 1))
          .found(std::to_string(1 << bits_) + ", which AutoGPTQ makes of a zero point 0")
          .hint("keep the format");
    zeros = qzeros.clone();
    auto* row = reinterpret_cast<std::uint32_t*>(zeros.mutable_data_ptr<std::int32_t>());
    for (std::int64_t g = 0; g < zeros.size(0); ++g, row += zeros.size(1))
      (wants_v2 ? to_plain : to_borrowed)(row, zeros.size(1), bits_);
  }
  Tensors out{{"qweight", words(0, out_features_)}, {"qzeros", zeros}, {"scales", scales}};
  if (g_idx_.defined()) out.set("g_idx", g_idx_);
  if (bias.defined()) out.set("bias", bias);
  if (stray_bias_.defined()) out.set("bias", stray_bias_);
  return out;
}

at::Tensor QuantLinear::dequantize() const {
  if (device_weight_.defined()) return device_weight_.dequantized(weight_dtype_);
  return kernels::dequantized(
      in_features_, out_features_, weight_dtype_,
      [this](std::int64_t first, std::int64_t count) { return columns(first, count); });
}

}  // namespace graft::gptq
