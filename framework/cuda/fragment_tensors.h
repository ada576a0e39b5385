#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/gather.h>

#include <array>
#include <span>
#include <vector>

#include "cuda/pack.h"
#include "cuda/packed_tensors.h"

namespace graft::cuda {

/// A packed 4-bit weight on a device.
class FragmentTensors : public PackedTensors {
 public:
  /// Whether the weight has a kernel here.
  static bool fits(const kernels::PanelTensors& panels) {
    return panels.defined() && panels.shape.kind != kernels::PanelKind::int8 &&
           fits_fragments(panels.shape.n, panels.shape.k, panels.shape.group);
  }

  /// The panels again, on `device`, for `activations` (float16, or else bfloat16): scales
  /// of int4 are rounded to it, as GPTQModel does. Of panels that fit.
  FragmentTensors(const kernels::PanelTensors& panels, at::ScalarType activations,
                  const c10::Device& device)
      : PackedTensors(panels, activations, device),
        shape(fragment_shape(
            panels.shape.kind == kernels::PanelKind::table4 ? CodeKind::table4 : CodeKind::int4, n,
            k, panels.shape.group)) {
    const c10::DeviceGuard guard(device);
    const auto from = upload(plain_words_of(panels, device), device);
    codes = at::empty({shape.code_bytes / 4}, at::TensorOptions(device).dtype(at::kInt));
    require(pack_codes(shape, reinterpret_cast<const std::uint32_t*>(from.const_data_ptr<int>()),
                       codes.mutable_data_ptr(), stream()),
            "packing a weight");
    const auto scales = by_output(panels.shape, panels.scales);
    if (shape.kind == CodeKind::table4) {
      words = by_band(scales.view(at::kInt)).to(device);
      table = panels.table.to(device);
      std::copy_n(panels.table.const_data_ptr<float>(), levels.size(), levels.begin());
    } else {
      words = by_band(words_of(scales, by_output(panels.shape, panels.zeros))).to(device);
    }
  }

  kernels::PanelTensors panels() const override {
    const auto from = plain_words();
    const bool is_table = shape.kind == CodeKind::table4;
    auto out = kernels::empty_panels(
        kernels::panel_shape(is_table ? kernels::PanelKind::table4 : kernels::PanelKind::int4,
                             n, k, shape.group));
    const std::pair source{from.const_data_ptr<int>(), n};
    const auto read = [](const void* self, std::int64_t panel, std::int64_t first,
                         std::int64_t count, std::uint32_t* to) {
      const auto& [data, outputs] = *static_cast<const decltype(source)*>(self);
      const auto width = std::min(kernels::kPanelWidth, outputs - panel * kernels::kPanelWidth);
      for (std::int64_t s = 0; s < count; ++s)
        for (std::int64_t j = 0; j < width; ++j)
          to[s * kernels::kPanelWidth + j] = static_cast<std::uint32_t>(
              data[(first + s) * outputs + panel * kernels::kPanelWidth + j]);
    };
    auto* to = out.codes.mutable_data_ptr<std::uint8_t>();
    for_each_chunk(pool(), out.shape.panels, [&](std::int64_t panel) {
      kernels::pack_words(out.shape, {+read, &source}, panel, panel + 1, to);
    });
    const auto plain = words.cpu().transpose(1, 2).reshape({-1, shape.groups});
    const auto own = plain.narrow(0, 0, n).narrow(1, 0, out.shape.groups).t().contiguous();
    if (is_table) {
      out.table = table.cpu();
      out.scales = kernels::by_panel(out.shape, own.view(at::kFloat));
    } else {
      put_words(own, out);
    }
    if (order.defined()) out.order = order.to(at::kCPU, at::kInt);
    return out;
  }

  at::Tensor rows(std::int64_t first, std::int64_t count, at::ScalarType type) const override {
    const c10::DeviceGuard guard(codes.device());
    auto out = at::empty({count, k}, codes.options().dtype(type));
    require(dequantize(view(dtype), first, count, dense_type(type), out.mutable_data_ptr(),
                       stream()),
            "dequantizing a weight");
    return out;
  }

  /// Rows of x that a weight multiplies, those after the rows of the part before.
  struct Part {
    const FragmentTensors* weight;
    at::Tensor bias;  ///< float32 [n] or undefined
    std::int64_t rows;
  };
  /// What the weights of `parts` make of their rows of x [P, k], in one go: [P, n]. Undefined where
  /// they differ in what a launch has once, or rows are so many that single products are as fast.
  static at::Tensor multiply(const at::Tensor& x, std::span<const Part> parts) {
    const auto& one = *parts.front().weight;
    if (x.device() != one.codes.device() || !one.is_own(x.scalar_type()) ||
        x.size(0) > kMostGroupedRows * static_cast<std::int64_t>(parts.size()))
      return {};
    for (const auto& part : parts)
      if (!one.goes_with(*part.weight)) return {};
    const c10::DeviceGuard guard(x.device());
    const auto rows_of_x = in_packed_order(x, parts).contiguous();
    auto y = at::empty({x.size(0), one.n}, x.options());
    std::vector<ProductSegment> segments;
    std::int64_t first = 0;
    for (const auto& part : parts) {
      const auto view = part.weight->view(x.scalar_type());
      segments.push_back({view.codes, view.words,
                          part.bias.defined() ? part.bias.const_data_ptr<float>() : nullptr, first,
                          part.rows});
      first += part.rows;
    }
    require(multiply_grouped(one.args(rows_of_x, at::Tensor(), y), segments, one.stream()),
            "a product of several weights");
    return y;
  }

  FragmentShape shape;
  at::Tensor words, table;          ///< int32 [word_count], float32 [16]
  std::array<float, 16> levels{};  ///< of the table, here

 protected:
  bool multiply_packed(const at::Tensor& x, const at::Tensor& bias, at::Tensor& y) const override {
    if (!is_own(x.scalar_type()) || x.size(0) > most_rows(view(x.scalar_type()))) return false;
    require(cuda::multiply(args(x, bias, y), stream()), "a product");
    return true;
  }
  at::ScalarType dense_dtype(at::ScalarType type) const override {
    return shape.kind == CodeKind::int4 ? dtype : type;
  }

 private:
  /// Whether the kernels multiply it with x of `type`. A table's scales are float32, so that it
  /// multiplies with either.
  bool is_own(at::ScalarType type) const {
    return type == dtype || (shape.kind == CodeKind::table4 && type != at::kFloat);
  }
  bool goes_with(const FragmentTensors& other) const {
    return shape.kind == other.shape.kind && n == other.n && k == other.k &&
           shape.group == other.shape.group && levels == other.levels && dtype == other.dtype &&
           codes.device() == other.codes.device() && order.defined() == other.order.defined();
  }

  /// Inputs of each row of x in the order of its weight.
  static at::Tensor in_packed_order(const at::Tensor& x, std::span<const Part> parts) {
    if (!parts.front().weight->order.defined()) return x;
    std::vector<at::Tensor> orders;
    for (const auto& part : parts)
      orders.push_back(part.weight->order.expand({part.rows, x.size(1)}));
    return at::gather(x, 1, at::cat(orders));
  }

  ProductArgs args(const at::Tensor& x, const at::Tensor& bias, at::Tensor& y) const {
    ProductArgs args;
    args.weight = view(x.scalar_type());
    args.m = x.size(0);
    args.x = x.const_data_ptr();
    args.x_stride = k;
    args.y = y.mutable_data_ptr();
    args.y_stride = n;
    args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    args.workspace = workspace_of(codes.device(), stream());
    return args;
  }

  /// [n, groups of panels] as the words lie, 0 where there is none.
  at::Tensor by_band(const at::Tensor& values) const {
    auto wide = at::zeros({shape.bands * kBandOutputs, shape.groups}, values.options());
    wide.narrow(1, 0, values.size(1)).narrow(0, 0, n).copy_(values);
    return wide.view({shape.bands, kBandOutputs, shape.groups}).transpose(1, 2).contiguous();
  }

  /// The codes as words [k / 8][n] int32 on the CPU, first input in the lowest bits, in packed
  /// order.
  at::Tensor plain_words() const {
    const c10::DeviceGuard guard(codes.device());
    auto out = at::empty({k / 8, n}, codes.options());
    require(unpack_codes(shape, codes.const_data_ptr(),
                         reinterpret_cast<std::uint32_t*>(out.mutable_data_ptr<int>()), stream()),
            "unpacking a weight");
    return out.cpu();
  }

  /// Words [k / 8][n] of panels that fit, to be uploaded.
  static at::Tensor plain_words_of(const kernels::PanelTensors& panels,
                                   const c10::Device& device) {
    const auto& shape = panels.shape;
    auto out = to_upload({shape.k / 8, shape.n}, at::kInt, device);
    auto* to = out.mutable_data_ptr<int>();
    const auto* from = panels.codes.const_data_ptr<std::uint8_t>();
    for_each_chunk(pool(), shape.panels, [&](std::int64_t panel) {
      constexpr std::int64_t kRun = 64;
      std::uint32_t words[kRun * kernels::kPanelWidth];
      const std::int64_t first = panel * kernels::kPanelWidth;
      const std::int64_t width = std::min(kernels::kPanelWidth, shape.n - first);
      for (std::int64_t step = 0; step < shape.steps; step += kRun) {
        const std::int64_t count = std::min(kRun, shape.steps - step);
        kernels::unpack_words(shape, from, panel, step, count, words);
        for (std::int64_t s = 0; s < count; ++s)
          for (std::int64_t j = 0; j < width; ++j)
            to[(step + s) * shape.n + first + j] =
                static_cast<int>(words[s * kernels::kPanelWidth + j]);
      }
    });
    return out;
  }

  Fragments view(at::ScalarType type) const {
    Fragments out;
    out.shape = shape;
    out.codes = codes.const_data_ptr();
    out.words = reinterpret_cast<const std::uint32_t*>(words.const_data_ptr<int>());
    out.table = table.defined() ? table.const_data_ptr<float>() : nullptr;
    out.element = type == at::kHalf ? Element::f16 : Element::bf16;
    return out;
  }
};

}  // namespace graft::cuda
