#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "cuda/dequantize.h"
#include "cuda/pack.h"
#include "cuda/product.h"
#include "graft/error.h"
#include "kernels/panel_tensors.h"

// Packed weights on a CUDA device as tensors, for plugins' modules. The only header here that knows
// torch; kernel sources do not include it.

namespace graft::cuda {

/// LibTorch's current stream of a device.
inline cudaStream_t stream_of(const c10::Device& device) {
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return static_cast<cudaStream_t>(guard.getStreamNativeHandle(guard.getStream(device)));
}

/// Throws Error(resource) with CUDA's words.
inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(ErrorKind::resource, std::string("CUDA: ") + what + " failed")
      .found(cudaGetErrorString(error));
}

/// Where products of one stream meet; made at the first, kept for the process. Any thread.
inline void* workspace_of(const c10::Device& device, cudaStream_t stream) {
  static auto* const kept = new std::map<std::pair<int, cudaStream_t>, at::Tensor>;
  static std::mutex guard;
  const std::lock_guard lock(guard);
  auto& memory = (*kept)[{device.index(), stream}];
  if (!memory.defined())
    memory = at::zeros({static_cast<std::int64_t>(workspace_bytes())},
                       at::TensorOptions(device).dtype(at::kByte));
  return memory.mutable_data_ptr();
}

inline DenseType dense_type(at::ScalarType type) {
  return type == at::kHalf       ? DenseType::f16
         : type == at::kBFloat16 ? DenseType::bf16
                                 : DenseType::f32;
}

/// A packed 4-bit weight on a device.
class FragmentTensors {
 public:
  bool defined() const { return codes.defined(); }

  /// Whether the weight has a CUDA kernel.
  static bool fits(const kernels::PanelTensors& panels) {
    return panels.defined() && panels.shape.kind != kernels::PanelKind::int8 &&
           fits_fragments(panels.shape.n, panels.shape.k, panels.shape.group);
  }

  /// The panels again, on `device`, for `activations` (float16, or else bfloat16): scales
  /// of int4 are rounded to it, as GPTQModel does. Of panels that fit.
  FragmentTensors(const kernels::PanelTensors& panels, at::ScalarType activations,
                  const c10::Device& device)
      : shape(fragment_shape(
            panels.shape.kind == kernels::PanelKind::table4 ? CodeKind::table4 : CodeKind::int4,
            panels.shape.n, panels.shape.k, panels.shape.group)),
        dtype(activations == at::kHalf ? at::kHalf : at::kBFloat16) {
    const c10::DeviceGuard guard(device);
    const auto options = at::TensorOptions(device).dtype(at::kInt);
    const auto from = words_of(panels).to(device);
    codes = at::empty({shape.code_bytes / 4}, options);
    require(pack_codes(shape, reinterpret_cast<const std::uint32_t*>(from.const_data_ptr<int>()),
                       codes.mutable_data_ptr(), stream_of(device)),
            "packing a weight");
    // [panels, groups, 16] to [bands, groups, 64]
    const auto by_output = [&](const at::Tensor& values) {
      const auto& p = panels.shape;
      auto wide = at::zeros({shape.bands * kBandOutputs, shape.groups}, values.options());
      wide.narrow(1, 0, p.groups)
          .narrow(0, 0, p.n)
          .copy_(values.transpose(1, 2)
                     .reshape({p.panels * kernels::kPanelWidth, p.groups})
                     .narrow(0, 0, p.n));
      return wide.view({shape.bands, kBandOutputs, shape.groups}).transpose(1, 2).contiguous();
    };
    const auto scales = by_output(panels.scales);
    if (shape.kind == CodeKind::table4) {
      words = scales.view(at::kInt).to(device);
      table = panels.table.to(device);
    } else {
      const auto halves = scales.to(dtype).view(at::kShort).to(at::kInt).bitwise_and(0xFFFF);
      words = (halves + by_output(panels.zeros).to(at::kInt).bitwise_left_shift(16)).to(device);
    }
    if (panels.order.defined()) order = panels.order.to(device, at::kLong);
  }
  FragmentTensors() = default;

  /// The codes as words [k / 8][n] int32 on the CPU, first input in the lowest bits, in packed
  /// order.
  at::Tensor plain_words() const {
    const c10::DeviceGuard guard(codes.device());
    auto out = at::empty({shape.k / 8, shape.n}, codes.options());
    require(unpack_codes(shape, codes.const_data_ptr(),
                         reinterpret_cast<std::uint32_t*>(out.mutable_data_ptr<int>()),
                         stream_of(codes.device())),
            "unpacking a weight");
    return out.cpu();
  }

  /// The panels again, on the CPU; scales of int4 as they were rounded.
  kernels::PanelTensors panels() const {
    const auto from = plain_words();
    const bool is_table = shape.kind == CodeKind::table4;
    auto out = kernels::empty_panels(
        kernels::panel_shape(is_table ? kernels::PanelKind::table4 : kernels::PanelKind::int4,
                             shape.n, shape.k, shape.group));
    const std::pair source{from.const_data_ptr<int>(), shape.n};
    const auto read = [](const void* self, std::int64_t panel, std::int64_t first,
                         std::int64_t count, std::uint32_t* to) {
      const auto& [data, n] = *static_cast<const decltype(source)*>(self);
      const auto width = std::min(kernels::kPanelWidth, n - panel * kernels::kPanelWidth);
      for (std::int64_t s = 0; s < count; ++s)
        for (std::int64_t j = 0; j < width; ++j)
          to[s * kernels::kPanelWidth + j] =
              static_cast<std::uint32_t>(data[(first + s) * n + panel * kernels::kPanelWidth + j]);
    };
    auto* to = out.codes.mutable_data_ptr<std::uint8_t>();
    for_each_chunk(pool(), out.shape.panels, [&](std::int64_t panel) {
      kernels::pack_words(out.shape, {+read, &source}, panel, panel + 1, to);
    });
    const auto plain = words.cpu().transpose(1, 2).reshape({-1, shape.groups});
    const auto own = plain.narrow(0, 0, shape.n).narrow(1, 0, out.shape.groups).t().contiguous();
    if (is_table) {
      out.table = table.cpu();
      out.scales = kernels::by_panel(out.shape, own.view(at::kFloat));
    } else {
      const auto halves = own.bitwise_and(0xFFFF).to(at::kShort).view(dtype);
      out.scales = kernels::by_panel(out.shape, halves.to(at::kFloat));
      out.zeros = kernels::by_panel(out.shape, own.bitwise_right_shift(16).to(at::kByte));
    }
    if (order.defined()) out.order = order.to(at::kCPU, at::kInt);
    return out;
  }

  /// The whole weight [n, k] in `type`, inputs in x's order.
  at::Tensor dense(at::ScalarType type) const {
    auto packed = rows(0, shape.n, type);
    if (!order.defined()) return packed;
    return at::empty_like(packed).index_copy_(1, order, packed);
  }

  /// Outputs [first, first + count) as rows [count, k] of `type`, in packed order; `first` is a
  /// multiple of 64.
  at::Tensor rows(std::int64_t first, std::int64_t count, at::ScalarType type) const {
    const c10::DeviceGuard guard(codes.device());
    auto out = at::empty({count, shape.k}, codes.options().dtype(type));
    require(dequantize(view(dtype), first, count, dense_type(type), out.mutable_data_ptr(),
                       stream_of(codes.device())),
            "dequantizing a weight");
    return out;
  }

  /// y = x W^T + bias for x [..., k] on the same device; y has its type. `bias`: float32 [n] or
  /// undefined. Other types than the one it was made for, and numbers of rows that no kernel is
  /// for, multiply with slabs of a dense copy.
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& bias) const {
    const c10::DeviceGuard guard(codes.device());
    auto sizes = x.sizes().vec();
    sizes.back() = shape.n;
    auto rows_of_x = x.reshape({-1, shape.k});
    if (order.defined()) rows_of_x = at::index_select(rows_of_x, 1, order);
    rows_of_x = rows_of_x.contiguous();
    const std::int64_t m = rows_of_x.size(0);
    auto y = at::empty({m, shape.n}, rows_of_x.options());
    // A table's scales are float32, so that it multiplies with either type.
    const bool is_own = x.scalar_type() == dtype ||
                        (shape.kind == CodeKind::table4 && x.scalar_type() != at::kFloat);
    const auto own = view(x.scalar_type());
    if (!is_own || m > most_rows(own)) {
      multiply_dense(rows_of_x, bias, y);
      return y.view(sizes);
    }
    const auto stream = stream_of(codes.device());
    ProductArgs args;
    args.weight = own;
    args.m = m;
    args.x = rows_of_x.const_data_ptr();
    args.x_stride = shape.k;
    args.y = y.mutable_data_ptr();
    args.y_stride = shape.n;
    args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    args.workspace = workspace_of(codes.device(), stream);
    require(cuda::multiply(args, stream), "a product");
    return y.view(sizes);
  }

  FragmentShape shape;
  at::ScalarType dtype = at::kBFloat16;
  at::Tensor codes, words, table;  ///< int32 [code_bytes / 4], int32 [word_count], float32 [16]
  at::Tensor order;                ///< int64 [k]: packed input i is x[order[i]]; undefined: x[i]

 private:
  /// Words [k / 8][n] of panels that fit.
  static at::Tensor words_of(const kernels::PanelTensors& panels) {
    const auto& shape = panels.shape;
    auto out = at::empty({shape.k / 8, shape.n}, at::kInt);
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

  void multiply_dense(const at::Tensor& x, const at::Tensor& bias, at::Tensor& y) const {
    constexpr std::int64_t kSlab = std::int64_t{1} << 27;  // weights of a slab
    const std::int64_t height =
        std::max<std::int64_t>(kSlab / shape.k / kBandOutputs, 1) * kBandOutputs;
    for (std::int64_t first = 0; first < shape.n; first += height) {
      const std::int64_t count = std::min(height, shape.n - first);
      // W of int4 is a number of the weight's type, whatever it is multiplied with.
      const auto type = shape.kind == CodeKind::int4 ? dtype : x.scalar_type();
      const auto weight = rows(first, count, type).to(x.scalar_type());
      auto part = at::mm(x, weight.t());
      if (bias.defined())
        part = (part.to(at::kFloat) + bias.narrow(0, first, count)).to(x.scalar_type());
      y.narrow(1, first, count).copy_(part);
    }
  }
};

}  // namespace graft::cuda
