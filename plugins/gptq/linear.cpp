#include "linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "graft/error.h"
#include "groups.h"
#include "kernels/dequantize.h"

namespace graft::gptq {
namespace {

/// Elements of dense weight that a thread makes before it multiplies with them: they stay in its
/// second-level cache. The same for every number of threads, so that results are too.
constexpr std::int64_t kSlab = 1 << 17;
constexpr std::int64_t kLane = 8;

constexpr double kLargestHalf = 65504;

const std::uint32_t* words(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint32_t*>(tensor.const_data_ptr<std::int32_t>());
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
    decode_zeros(words(qzeros) + g * qzeros.size(1), out_features_, bits_, zero_rule_,
                 zeros + g * out_features_);
  weight_dtype_ = model_dtype_ == at::kFloat ? scales.scalar_type() : model_dtype_;
  const double most = static_cast<double>(1 << bits_);
  if (weight_dtype_ == at::kHalf && scales.abs().max().item<double>() * most > kLargestHalf)
    weight_dtype_ = at::kFloat;
  if (const auto* given = tensors.find("bias")) {
    if (bias.defined()) {
      set_tensor("bias", *given);
    } else {
      stray_bias_ = *given;
      adds_stray_bias_ = given->ne(0).any().item<bool>();
    }
  }
}

at::Tensor QuantLinear::columns(std::int64_t first, std::int64_t count) const {
  auto out = at::empty({in_features_, count}, at::kFloat);
  const auto some_scales =
      scales.narrow(1, first, count).to(weight_dtype_).to(at::kFloat).contiguous();
  const auto some_zeros = zeros_.narrow(1, first, count).to(at::kFloat).contiguous();
  const Columns columns{words(qweight) + first,
                        out_features_,
                        in_features_,
                        count,
                        bits_,
                        group_.const_data_ptr<std::int32_t>(),
                        some_scales.const_data_ptr<float>(),
                        some_zeros.const_data_ptr<float>()};
  gptq::dequantize()(columns, out.mutable_data_ptr<float>());
  return out.to(weight_dtype_);
}

std::int64_t QuantLinear::slab_width() const {
  const std::int64_t width = std::max<std::int64_t>(kSlab / in_features_, 1);
  return std::min((width + kLane - 1) / kLane * kLane, out_features_);
}

at::Tensor QuantLinear::forward(const at::Tensor& x) {
  const auto compute = weight_dtype_ == at::kFloat ? at::kFloat : x.scalar_type();
  const auto input = x.reshape({-1, in_features_}).to(compute);
  auto y = at::empty({input.size(0), out_features_}, input.options());
  const std::int64_t width = slab_width();
  const std::int64_t slabs = (out_features_ + width - 1) / width;
  at::parallel_for(0, slabs, 1, [&](std::int64_t begin, std::int64_t end) {
    const c10::InferenceMode guard;
    for (std::int64_t slab = begin; slab < end; ++slab) {
      const std::int64_t first = slab * width, count = std::min(width, out_features_ - first);
      y.narrow(1, first, count).copy_(at::mm(input, columns(first, count).to(compute)));
    }
  });
  const auto& added = adds_stray_bias_ ? stray_bias_ : bias;
  if (added.defined()) y = y.to(at::kFloat) + added.to(at::kFloat);
  auto sizes = x.sizes().vec();
  sizes.back() = out_features_;
  return y.to(x.scalar_type()).view(sizes);
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
    if (zero_rule_ == ZeroRule::unmasked &&
        zeros_.ge(1 << bits_).any().item<bool>())
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
  Tensors out{{"qweight", qweight}, {"qzeros", zeros}, {"scales", scales}};
  if (g_idx_.defined()) out.set("g_idx", g_idx_);
  if (bias.defined()) out.set("bias", bias);
  if (stray_bias_.defined()) out.set("bias", stray_bias_);
  return out;
}

at::Tensor QuantLinear::dequantize() const {
  auto out = at::empty({out_features_, in_features_}, weight_dtype_);
  const std::int64_t width = slab_width();
  for (std::int64_t first = 0; first < out_features_; first += width) {
    const std::int64_t count = std::min(width, out_features_ - first);
    out.narrow(0, first, count).copy_(columns(first, count).t());
  }
  return out;
}

}  // namespace graft::gptq
