#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "graft/activations.h"
#include "graft/error.h"
#include "kernels/linear.h"
#include "kernels/row_products.h"

// Packed panels as tensors, for plugins' modules. The only header here that knows torch; kernel
// sources do not include it.

namespace graft::kernels {

/// Throws Error(usage) for what is not float32, bfloat16 or float16.
inline ElementType element_type(at::ScalarType type) {
  if (type == at::kFloat) return ElementType::f32;
  if (type == at::kBFloat16) return ElementType::bf16;
  if (type == at::kHalf) return ElementType::f16;
  throw Error(ErrorKind::usage, "quantized layers do not compute with such numbers")
      .expected("float32, bfloat16 or float16")
      .found(c10::toString(type));
}

/// A packed weight that owns its memory. `codes` uint8 [code_bytes], `scales` float32, bfloat16 or
/// float16, `zeros` uint8 or int16, both [panels, groups, 16]; `table` float32 [16]; `order` int32
/// [k]. Undefined where the kind has none.
struct PanelTensors {
  PanelShape shape;
  at::Tensor codes, scales, zeros, table, order;

  bool defined() const { return codes.defined(); }
  PanelWeight view() const {
    PanelWeight weight;
    weight.shape = shape;
    weight.codes = codes.const_data_ptr<std::uint8_t>();
    weight.scales = {scales.const_data_ptr(), element_type(scales.scalar_type())};
    weight.zeros = zeros.defined() ? zeros.const_data_ptr() : nullptr;
    weight.table = table.defined() ? table.const_data_ptr<float>() : nullptr;
    weight.order = order.defined() ? order.const_data_ptr<std::int32_t>() : nullptr;
    return weight;
  }
};

/// Uninitialised tensors for `shape`, but for table, order and scales.
inline PanelTensors empty_panels(const PanelShape& shape) {
  PanelTensors out;
  out.shape = shape;
  out.codes = at::empty({shape.code_bytes}, at::kByte);
  if (shape.zero_bytes > 0)
    out.zeros = at::empty({shape.panels, shape.groups, kPanelWidth},
                          shape.kind == PanelKind::int8 ? at::kShort : at::kByte);
  return out;
}

/// Numbers [groups, n], such as scales or zero points, in the order of panels: [panels, groups,
/// 16], 0 beyond n. `order` [groups]: which group comes where; empty: as they are.
inline at::Tensor by_panel(const PanelShape& shape, const at::Tensor& values,
                           std::span<const std::int32_t> order = {}) {
  const auto from = values.contiguous();
  auto out = at::empty({shape.panels, shape.groups, kPanelWidth}, from.options());
  const auto size = static_cast<std::int64_t>(from.element_size());
  const auto* source = static_cast<const std::byte*>(from.const_data_ptr());
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  for (std::int64_t panel = 0; panel < shape.panels; ++panel) {
    const std::int64_t first = panel * kPanelWidth, width = std::min(kPanelWidth, shape.n - first);
    for (std::int64_t g = 0; g < shape.groups; ++g, to += kPanelWidth * size) {
      const std::int64_t row = order.empty() ? g : order[static_cast<std::size_t>(g)];
      std::memcpy(to, source + (row * shape.n + first) * size,
                  static_cast<std::size_t>(width * size));
      std::memset(to + width * size, 0, static_cast<std::size_t>((kPanelWidth - width) * size));
    }
  }
  return out;
}

/// The way back, of outputs [first, first + count): [groups, count]; `first` is a multiple of a
/// panel's width.
inline at::Tensor by_group(const PanelShape& shape, const at::Tensor& values, std::int64_t first,
                           std::int64_t count) {
  auto out = at::empty({shape.groups, count}, values.options());
  const auto size = static_cast<std::int64_t>(values.element_size());
  const auto* source = static_cast<const std::byte*>(values.const_data_ptr());
  auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
  for (std::int64_t at = 0; at < count; at += kPanelWidth)
    for (std::int64_t g = 0; g < shape.groups; ++g)
      std::memcpy(to + (g * count + at) * size,
                  source + ((first + at) / kPanelWidth * shape.groups + g) * kPanelWidth * size,
                  static_cast<std::size_t>(std::min(kPanelWidth, count - at) * size));
  return out;
}

/// What stands where a tensor was whose values only `packed` has now: the first of them, with the
/// old sizes and no memory of its own.
inline at::Tensor stand_in(const at::Tensor& packed, const at::Tensor& tensor) {
  return packed.view({-1}).narrow(0, 0, tensor.numel()).view(tensor.sizes());
}

/// What rows of `type` are computed in under the mode that was asked for: 15-bit activations unless
/// they are float32, which stays exact.
inline Act choose_act(graft_activation_mode mode, at::ScalarType type) {
  switch (mode) {
    case GRAFT_ACT_A15:
      return Act::a15;
    case GRAFT_ACT_A8:
      return Act::a8;
    case GRAFT_ACT_BF16:
      return Act::bf16;
    case GRAFT_ACT_F32:
      return Act::f32;
    case GRAFT_ACT_AUTO:
      break;
  }
  return type == at::kFloat ? Act::f32 : Act::a15;
}

/// y = x W^T + bias for x [..., k] in float32, bfloat16 or float16; y has its type. `bias`: float32
/// [n] or undefined. Afterwards the pool may read the weight until drain().
inline at::Tensor multiply(const PanelTensors& weight, const at::Tensor& x, const at::Tensor& bias,
                           Act act, const graft_pool& pool) {
  const auto rows = x.contiguous();
  auto sizes = x.sizes().vec();
  sizes.back() = weight.shape.n;
  auto y = at::empty(sizes, rows.options());
  const PanelWeight view = weight.view();
  LinearArgs args;
  args.weight = &view;
  args.act = act;
  args.m = rows.numel() / weight.shape.k;
  args.x = rows.const_data_ptr();
  args.x_type = args.y_type = element_type(rows.scalar_type());
  args.x_stride = weight.shape.k;
  args.y = y.mutable_data_ptr();
  args.y_stride = weight.shape.n;
  args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  multiply(args, pool);
  return y;
}

/// The same on plain memory.
inline std::unique_ptr<nn::RowProduct> row_product(const PanelTensors& weight,
                                                   const at::Tensor& bias, Act act) {
  return panel_product(weight.view(), bias.defined() ? bias.const_data_ptr<float>() : nullptr, act);
}

}  // namespace graft::kernels
