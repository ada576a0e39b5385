#include "linear.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "graft/activations.h"
#include "graft/error.h"
#include "graft/pool.h"
#include "graft/rounding.h"
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
  const auto found = find_groups(g_idx ? *g_idx : at::Tensor(), in_features_, config);
  group_size_ = config.group_of(in_features_);
  // What only counts groups is not worth its memory.
  group_ = found.in_order ? at::Tensor() : found.of_input;
  g_idx_ = g_idx ? *g_idx : at::Tensor();
  counts_groups_ = g_idx && g_idx->equal(groups_in_order(in_features_, group_size_));
  if (counts_groups_) g_idx_ = at::Tensor();
  for (const char* name : {"qweight", "qzeros", "scales"})
    set_tensor(name, tensors.at(name).contiguous());
  zero_rule_ = config.zero_rule();
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
  make_panels();
}

at::Tensor QuantLinear::group_of_input() const {
  return group_.defined() ? group_ : groups_in_order(in_features_, group_size_);
}

at::Tensor QuantLinear::pack_zeros(const at::Tensor& zeros) const {
  auto words = at::empty({zeros.size(0), words_for(out_features_, bits_)}, at::kInt);
  std::fill_n(words_of(words), words.numel(), 0U);
  const auto* from = zeros.const_data_ptr<std::int16_t>();
  const unsigned mask = (1U << bits_) - 1U;
  for (std::int64_t g = 0; g < zeros.size(0); ++g, from += out_features_) {
    auto* row = words_of(words) + g * words.size(1);
    for (std::int64_t n = 0; n < out_features_; ++n)
      put_field(row, 1, n, bits_, static_cast<unsigned>(from[n]) & mask);
    if (zero_rule_ != ZeroRule::plain) to_borrowed(row, words.size(1), bits_);
  }
  return words;
}

at::Tensor QuantLinear::zeros_as_in_file() const {
  return zeros_in_panels_ ? pack_zeros(zero_points(0, out_features_)) : qzeros;
}

at::Tensor QuantLinear::zero_points(std::int64_t first, std::int64_t count) const {
  if (zeros_in_panels_)
    return kernels::by_group(panels_.shape, panels_.zeros, first, count).to(at::kShort);
  // From a word's beginning on.
  const std::int64_t extra = first % 32, fields = extra + count, groups = qzeros.size(0);
  auto out = at::empty({groups, fields}, at::kShort);
  const auto* row = words_of(qzeros) + words_for(first - extra, bits_);
  auto* zeros = reinterpret_cast<std::uint16_t*>(out.mutable_data_ptr<std::int16_t>());
  for (std::int64_t g = 0; g < groups; ++g, row += qzeros.size(1), zeros += fields)
    decode_zeros(row, fields, bits_, zero_rule_, zeros);
  return out.narrow(1, extra, count);
}

void QuantLinear::make_panels() {
  if (panels_.defined()) pool().drain();
  panels_ = {};
  zeros_in_panels_ = false;
  if (!whole_words(in_features_, bits_)) return;
  auto sorting =
      sort_by_group(group_of_input().const_data_ptr<std::int32_t>(), in_features_, group_size_);
  if (!sorting.even) return;
  const auto shape =
      kernels::panel_shape(panel_kind(bits_), out_features_, in_features_, group_size_);
  auto panels = kernels::empty_panels(shape);
  if (!sorting.order.empty()) panels.order = at::tensor(sorting.order, at::kInt);
  panels.scales = kernels::by_panel(shape, scales, sorting.groups);
  const auto zeros = zero_points(0, out_features_);
  panels.zeros = kernels::by_panel(shape, zeros.to(panels.zeros.scalar_type()), sorting.groups);
  const PackedWords from{words_of(qweight), out_features_, bits_, panels.view().order};
  auto* codes = panels.codes.mutable_data_ptr<std::uint8_t>();
  for_each_chunk(pool(), shape.panels,
                 [&](std::int64_t panel) { pack(shape, from, panel, panel + 1, codes); });
  panels_ = std::move(panels);
  // From here on the panels are the only copy.
  set_tensor("qweight", kernels::stand_in(panels_.codes.view(at::kInt), qweight));
  if (!in_order()) return;
  set_tensor("scales", kernels::stand_in(panels_.scales, scales));
  zeros_in_panels_ = pack_zeros(zeros).equal(qzeros);
  if (zeros_in_panels_)
    set_tensor("qzeros", kernels::stand_in(panels_.zeros.view({-1}).view(at::kInt), qzeros));
}

bool QuantLinear::in_order() const { return panels_.defined() && !panels_.order.defined(); }

at::Tensor QuantLinear::scales_of(std::int64_t first, std::int64_t count) const {
  return in_order() ? kernels::by_group(panels_.shape, panels_.scales, first, count)
                    : scales.narrow(1, first, count);
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
  const auto packed = words(first, count), group = group_of_input();
  const auto some_scales = scales_of(first, count).to(weight_dtype_).to(at::kFloat).contiguous();
  const auto some_zeros = zero_points(first, count).to(at::kFloat).contiguous();
  const Columns columns{words_of(packed),
                        packed.stride(0),
                        in_features_,
                        count,
                        bits_,
                        group.const_data_ptr<std::int32_t>(),
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
    set_tensor("scales", scales_of(0, out_features_).contiguous());
    set_tensor("qzeros", zeros_as_in_file());
    zeros_in_panels_ = false;
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

at::Tensor QuantLinear::forward_segments(const at::Tensor& x, std::span<const Segment> segments) {
  return cuda::multiply_segments(x, segments, &QuantLinear::device_weight_,
                                 &QuantLinear::float_bias_);
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
  auto zeros = zeros_as_in_file();
  if (is_v2 != wants_v2) {
    if (zero_rule_ == ZeroRule::unmasked &&
        zero_points(0, out_features_).ge(1 << bits_).any().item<bool>())
      throw Error(ErrorKind::usage, "the zero points do not fit into the other format")
          .at("tensor 'qzeros'")
          .expected("at most " + std::to_string((1 << bits_) - 1))
          .found(std::to_string(1 << bits_) + ", which AutoGPTQ makes of a zero point 0")
          .hint("keep the format");
    zeros = zeros.clone();
    auto* row = reinterpret_cast<std::uint32_t*>(zeros.mutable_data_ptr<std::int32_t>());
    for (std::int64_t g = 0; g < zeros.size(0); ++g, row += zeros.size(1))
      (wants_v2 ? to_plain : to_borrowed)(row, zeros.size(1), bits_);
  }
  Tensors out{{"qweight", words(0, out_features_)},
              {"qzeros", zeros},
              {"scales", scales_of(0, out_features_)}};
  if (counts_groups_) out.set("g_idx", groups_in_order(in_features_, group_size_));
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

at::Tensor QuantLinear::codes() const {
  const auto packed = words(0, out_features_).contiguous();
  auto out = at::empty({in_features_, out_features_}, at::kByte);
  unpack_fields(words_of(packed), in_features_, out_features_, out_features_, bits_,
                out.mutable_data_ptr<std::uint8_t>());
  return out;
}

WeightNeighbours QuantLinear::neighbours() const {
  const auto group = group_of_input();
  const auto of_inputs = [&](const at::Tensor& of_groups) {
    return of_groups.index_select(0, group).t();
  };
  return neighbours_of(codes().t(), of_inputs(zero_points(0, out_features_)),
                       of_inputs(scales_of(0, out_features_)), (1 << bits_) - 1);
}

}  // namespace graft::gptq
