#include "linear4bit.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "four_bit_panels.h"
#include "graft/activations.h"
#include "graft/error.h"
#include "graft/nn/product.h"
#include "graft/pool.h"
#include "kernels/four_bit.h"

namespace graft::bnb {
namespace {

/// Elements of dense weight that a thread makes before it multiplies with them: they stay in its
/// second-level cache. The same for every number of threads, so that results are too.
constexpr std::int64_t kSlab = 1 << 17;

}  // namespace

Linear4bit::Linear4bit(const ModuleSpec& spec, at::ScalarType compute_dtype)
    : Unary("Linear4bit"),
      in_features_(spec.in_features),
      out_features_(spec.out_features),
      compute_dtype_(compute_dtype) {
  const auto meta = at::TensorOptions(at::kMeta);
  const std::int64_t count = in_features_ * out_features_;
  own("weight", weight, at::empty({(count + 1) / 2, 1}, meta.dtype(at::kByte)));
  own("bias", bias, spec.bias ? at::empty({out_features_}, meta.dtype(spec.dtype)) : at::Tensor());
}

Linear4bit::~Linear4bit() {
  if (panels_.defined()) pool().drain();
}

void Linear4bit::fill(const Tensors& tensors) {
  Tensors stored;
  for (const auto& [name, tensor] : tensors)
    if (name != "bias") stored.set(name, tensor);
  const auto* given_bias = tensors.find("bias");
  take(stored, read_quant_state(tensors, out_features_, in_features_),
       given_bias ? *given_bias : at::Tensor());
}

void Linear4bit::fill(QuantizedWeight quantized, const at::Tensor& given_bias) {
  take(std::move(quantized.stored), std::move(quantized.state), given_bias);
}

void Linear4bit::take(Tensors stored, QuantState state, const at::Tensor& given_bias) {
  const auto& packed = stored.at("weight");
  const auto bytes = packed.contiguous().view({-1}).view(at::kByte);
  const std::int64_t expected = (in_features_ * out_features_ + 1) / 2;
  if (bytes.numel() != expected)
    throw Error(ErrorKind::model, "the packed weight has another size than the module")
        .at("tensor 'weight'")
        .expected(std::to_string(expected) + " bytes")
        .found(std::to_string(bytes.numel()))
        .hint("download the file again");
  if (given_bias.defined()) {
    set_tensor("bias", given_bias);
    float_bias_ = given_bias.to(at::kFloat).contiguous();
  }
  storage_ = packed.scalar_type();
  storage_sizes_ = packed.sizes().vec();
  plain_absmax_ = stored.at("weight.absmax").scalar_type() == at::kFloat;
  state_ = std::move(state);
  stored_ = std::move(stored);
  if (panel_group(in_features_, state_.blocksize) == 0) {
    set_tensor("weight", bytes.view({-1, 1}));
    return;
  }
  if (panels_.defined()) pool().drain();
  panels_ = pack_blocks(bytes, state_, out_features_, in_features_);
  set_tensor("weight", panels_.codes.narrow(0, 0, expected).view({-1, 1}));
  // From here on the panels are the only copy.
  stored_.set("weight", at::Tensor());
  if (plain_absmax_) stored_.set("weight.absmax", at::Tensor());
  state_.absmax.reset();
}

kernels::PanelTensors Linear4bit::held() const {
  return device_weight_.is_packed() ? device_weight_.panels() : panels_;
}

at::Tensor Linear4bit::bytes() const {
  const auto panels = held();
  if (!panels.defined()) return weight.view({-1});
  auto out = at::empty({in_features_ * out_features_ / 2}, at::kByte);
  auto* to = out.mutable_data_ptr<std::uint8_t>();
  for_each_chunk(pool(), panels.shape.panels, [&](std::int64_t panel) {
    const std::int64_t first = panel * kernels::kPanelWidth;
    unpack_rows(panels, first, std::min(kernels::kPanelWidth, out_features_ - first),
                to + first * in_features_ / 2);
  });
  return out;
}

at::Tensor Linear4bit::absmax() const {
  const auto panels = held();
  return panels.defined() ? unpack_absmax(panels, state_.blocksize) : state_.absmax;
}

Tensors Linear4bit::stored() const {
  Tensors out;
  for (const auto& [name, tensor] : stored_) {
    if (name == "weight")
      out.set(name, bytes().view(storage_).view(storage_sizes_));
    else if (name == "weight.absmax" && plain_absmax_)
      out.set(name, absmax());
    else
      out.set(name, tensor);
  }
  return out;
}

at::Tensor Linear4bit::multiply_dequantized(const at::Tensor& x) const {
  const auto compute = x.scalar_type() == at::kFloat ? at::kFloat : compute_dtype_;
  const auto input = x.reshape({-1, in_features_}).to(compute);
  auto y = at::empty({input.size(0), out_features_}, input.options());
  const std::int64_t height = std::clamp<std::int64_t>(kSlab / in_features_, 1, out_features_);
  nn::for_each_part((out_features_ + height - 1) / height, [&](std::int64_t slab) {
    const std::int64_t first = slab * height, count = std::min(height, out_features_ - first);
    auto rows = at::empty({count, in_features_}, at::kFloat);
    dequantize_blocks()(
        weight.const_data_ptr<std::uint8_t>(), state_.table.const_data_ptr<float>(),
        state_.absmax.const_data_ptr<float>(), state_.blocksize, first * in_features_,
        count * in_features_, rows.mutable_data_ptr<float>());
    y.narrow(1, first, count).copy_(at::mm(input, rows.to(state_.dtype).to(compute).t()));
  });
  if (bias.defined()) y.add_(bias.to(compute));
  auto sizes = x.sizes().vec();
  sizes.back() = out_features_;
  return y.to(x.scalar_type()).view(sizes);
}

void Linear4bit::to_cuda(const c10::Device& device) {
  if (device_weight_.defined()) to_cpu();
  device_weight_.take(panels_, compute_dtype_, device, [this] { return dequantize(); });
  if (device_weight_.is_packed()) {
    // From here on the device's is the only copy.
    pool().drain();
    panels_ = {};
    set_tensor("weight", device_weight_.codes_as(weight));
  }
  if (float_bias_.defined()) float_bias_ = float_bias_.to(device);
}

void Linear4bit::to_cpu() {
  if (device_weight_.is_packed()) {
    panels_ = device_weight_.panels();
    set_tensor("weight", panels_.codes.narrow(0, 0, weight.numel()).view(weight.sizes()));
  }
  device_weight_.reset();
  if (float_bias_.defined()) float_bias_ = float_bias_.cpu();
}

void Linear4bit::to(torch::Device device, bool non_blocking) {
  if (device.is_cuda()) return to_cuda(device);
  if (device_weight_.defined()) to_cpu();
  Unary::to(device, non_blocking);
}

at::Tensor Linear4bit::forward(const at::Tensor& x) {
  if (device_weight_.defined()) return device_weight_.multiply(x, float_bias_);
  if (!panels_.defined()) return multiply_dequantized(x);
  const auto mode = static_cast<graft_activation_mode>(activations().mode());
  return kernels::multiply(panels_, x, float_bias_, kernels::choose_act(mode, x.scalar_type()),
                           pool());
}

at::Tensor Linear4bit::forward_segments(const at::Tensor& x, std::span<const Segment> segments) {
  return cuda::multiply_segments(x, segments, &Linear4bit::device_weight_,
                                 &Linear4bit::float_bias_);
}

std::unique_ptr<nn::RowProduct> Linear4bit::row_product(at::ScalarType dtype) const {
  const auto mode = static_cast<graft_activation_mode>(activations().mode());
  const auto act = kernels::choose_act(mode, dtype);
  if (!panels_.defined()) return nullptr;
  return kernels::row_product(panels_, float_bias_, act);
}

void Linear4bit::describe(ModuleSpec& spec) const {
  Unary::describe(spec);
  spec.in_features = in_features_;
  spec.out_features = out_features_;
  spec.bias = bias.defined();
  spec.dtype = state_.dtype;
}

at::Tensor Linear4bit::dequantize() const {
  if (device_weight_.defined()) return device_weight_.dequantized(state_.dtype);
  return dequantized_blocks(bytes(), state_.table, absmax(), state_.blocksize,
                            out_features_ * in_features_)
      .to(state_.dtype)
      .view({out_features_, in_features_});
}

}  // namespace graft::bnb
