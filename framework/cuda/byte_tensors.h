#pragma once

#include <tuple>

#include "cuda/byte_product.h"
#include "cuda/packed_tensors.h"

namespace graft::cuda {

/// A packed 8-bit weight on a device.
class ByteTensors : public PackedTensors {
 public:
  /// Whether the weight has a kernel here.
  static bool fits(const kernels::PanelTensors& panels) {
    return panels.defined() && panels.shape.kind == kernels::PanelKind::int8 &&
           fits_bytes(panels.shape.n, panels.shape.k, panels.shape.group);
  }

  /// The panels again, on `device`, for `activations` (float16, or else bfloat16), to which scales
  /// are rounded, as GPTQModel does. Of panels that fit.
  ByteTensors(const kernels::PanelTensors& panels, at::ScalarType activations,
              const c10::Device& device)
      : PackedTensors(panels, activations, device), group_(panels.shape.group) {
    codes = upload(plain_codes_of(panels, device).view({-1}), device);
    words_ = words_of(by_output(panels.shape, panels.scales), by_output(panels.shape, panels.zeros))
                 .contiguous()
                 .to(device);
  }

  kernels::PanelTensors panels() const override {
    auto out = kernels::empty_panels(
        kernels::panel_shape(kernels::PanelKind::int8, n, k, group_));
    const auto from = codes.cpu();
    const std::tuple source{from.const_data_ptr<std::uint8_t>(), n, k};
    const auto read = [](const void* self, std::int64_t panel, std::int64_t first,
                         std::int64_t count, std::uint8_t* to) {
      const auto& [data, outputs, inputs] = *static_cast<const decltype(source)*>(self);
      const auto width = std::min(kernels::kPanelWidth, outputs - panel * kernels::kPanelWidth);
      for (std::int64_t j = 0; j < width; ++j)
        for (std::int64_t i = 0; i < count; ++i)
          to[i * kernels::kPanelWidth + j] =
              data[(panel * kernels::kPanelWidth + j) * inputs + first + i];
    };
    auto* to = out.codes.mutable_data_ptr<std::uint8_t>();
    for_each_chunk(pool(), out.shape.panels, [&](std::int64_t panel) {
      kernels::pack_panels(out.shape, {+read, &source}, panel, panel + 1, to);
    });
    put_words(words_.cpu().t().contiguous(), out);
    if (order.defined()) out.order = order.to(at::kCPU, at::kInt);
    return out;
  }

  at::Tensor rows(std::int64_t first, std::int64_t count, at::ScalarType type) const override {
    const c10::DeviceGuard guard(codes.device());
    auto out = at::empty({count, k}, codes.options().dtype(type));
    require(dequantize_bytes(view(), first, count, dense_type(type), out.mutable_data_ptr(),
                             stream()),
            "dequantizing a weight");
    return out;
  }

 protected:
  bool multiply_packed(const at::Tensor& x, const at::Tensor& bias, at::Tensor& y) const override {
    if (x.scalar_type() != dtype || x.size(0) > kMostByteRows) return false;
    ByteProductArgs args;
    args.weight = view();
    args.m = x.size(0);
    args.x = x.const_data_ptr();
    args.x_stride = k;
    args.y = y.mutable_data_ptr();
    args.y_stride = n;
    args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    require(multiply_bytes(args, stream()), "a product");
    return true;
  }

 private:
  ByteWeight view() const {
    ByteWeight out;
    out.n = n;
    out.k = k;
    out.group = group_;
    out.codes = codes.const_data_ptr<std::uint8_t>();
    out.words = reinterpret_cast<const std::uint32_t*>(words_.const_data_ptr<int>());
    out.element = dtype == at::kHalf ? Element::f16 : Element::bf16;
    return out;
  }

  /// Codes [n, k] of panels that fit, to be uploaded.
  static at::Tensor plain_codes_of(const kernels::PanelTensors& panels,
                                   const c10::Device& device) {
    const auto& shape = panels.shape;
    auto out = to_upload({shape.n, shape.k}, at::kByte, device);
    auto* to = out.mutable_data_ptr<std::uint8_t>();
    const auto* from = panels.codes.const_data_ptr<std::uint8_t>();
    for_each_chunk(pool(), shape.panels, [&](std::int64_t panel) {
      constexpr std::int64_t kInputs = 256;
      std::uint8_t codes[kInputs * kernels::kPanelWidth];
      const std::int64_t output = panel * kernels::kPanelWidth;
      const std::int64_t width = std::min(kernels::kPanelWidth, shape.n - output);
      for (std::int64_t first = 0; first < shape.k; first += kInputs) {
        const std::int64_t count = std::min(kInputs, shape.k - first);
        kernels::unpack_codes(shape, from, panel, first, count, codes);
        for (std::int64_t j = 0; j < width; ++j)
          for (std::int64_t i = 0; i < count; ++i)
            to[(output + j) * shape.k + first + i] = codes[i * kernels::kPanelWidth + j];
      }
    });
    return out;
  }

  std::int64_t group_;
  at::Tensor words_;  ///< int32 [n, groups]
};

}  // namespace graft::cuda
