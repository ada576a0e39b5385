#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/dequantize.h"
#include "cuda/product.h"
#include "cuda/stream_of_device.h"
#include "graft/error.h"
#include "kernels/panel_tensors.h"

// Packed weights on a CUDA device as tensors, for plugins' modules. These headers (*_tensors.h,
// device_weight.h) alone know torch here; kernel sources do not include them.

namespace graft::cuda {

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

/// Memory here that is filled and then copied to `device` with upload(): pinned for a CUDA device.
/// LibTorch's allocator gives it to others only when that copy is done, so that one weight is
/// unpacked while the one before travels.
inline at::Tensor to_upload(at::IntArrayRef sizes, at::ScalarType type, const c10::Device& device) {
  return at::empty(sizes, at::TensorOptions(type).pinned_memory(device.is_cuda()));
}
inline at::Tensor upload(const at::Tensor& values, const c10::Device& device) {
  return values.to(device, /*non_blocking=*/true);
}

/// A packed weight [n, k] on a device, whatever its kernels read.
class PackedTensors {
 public:
  PackedTensors(const kernels::PanelTensors& panels, at::ScalarType activations,
                const c10::Device& device)
      : n(panels.shape.n),
        k(panels.shape.k),
        dtype(activations == at::kHalf ? at::kHalf : at::kBFloat16) {
    if (panels.order.defined()) order = panels.order.to(device, at::kLong);
  }
  PackedTensors(const PackedTensors&) = delete;
  PackedTensors& operator=(const PackedTensors&) = delete;
  virtual ~PackedTensors() = default;

  /// The panels again, on the CPU; scales but those of a table as they were rounded.
  virtual kernels::PanelTensors panels() const = 0;
  /// Outputs [first, first + count) as rows [count, k] of `type`, in packed order; `first` is a
  /// multiple of 64.
  virtual at::Tensor rows(std::int64_t first, std::int64_t count, at::ScalarType type) const = 0;

  /// The whole weight [n, k] in `type`, inputs in x's order.
  at::Tensor dense(at::ScalarType type) const {
    auto packed = rows(0, n, type);
    if (!order.defined()) return packed;
    return at::empty_like(packed).index_copy_(1, order, packed);
  }

  /// y = x W^T + bias for x [..., k] on the same device; y has its type. `bias`: float32 [n] or
  /// undefined. Other types than those it has kernels for, and numbers of rows that no kernel is
  /// for, multiply with slabs of a dense copy.
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& bias) const {
    const c10::DeviceGuard guard(codes.device());
    auto sizes = x.sizes().vec();
    sizes.back() = n;
    auto rows_of_x = x.reshape({-1, k});
    if (order.defined()) rows_of_x = at::index_select(rows_of_x, 1, order);
    rows_of_x = rows_of_x.contiguous();
    auto y = at::empty({rows_of_x.size(0), n}, rows_of_x.options());
    if (!multiply_packed(rows_of_x, bias, y)) multiply_dense(rows_of_x, bias, y);
    return y.view(sizes);
  }

  std::int64_t n, k;
  at::ScalarType dtype;  ///< that it was made for: float16 or bfloat16
  at::Tensor codes;      ///< as the kernels read them, in one dimension
  at::Tensor order;      ///< int64 [k]: packed input i is x[order[i]]; undefined: x[i]

 protected:
  /// y [m, n] of x [m, k], both contiguous, with the packed codes; false where no kernel is for it.
  virtual bool multiply_packed(const at::Tensor& x, const at::Tensor& bias,
                               at::Tensor& y) const = 0;
  /// Type of the numbers that W consists of where it is multiplied with x of `type`.
  virtual at::ScalarType dense_dtype(at::ScalarType /*type*/) const { return dtype; }

  cudaStream_t stream() const { return stream_of(codes.device()); }

  /// Values [panels, groups, 16] of panels as [n, groups].
  static at::Tensor by_output(const kernels::PanelShape& shape, const at::Tensor& values) {
    return values.transpose(1, 2)
        .reshape({shape.panels * kernels::kPanelWidth, shape.groups})
        .narrow(0, 0, shape.n);
  }
  /// Words of scales in `dtype` and zero points, int32 of the same sizes.
  at::Tensor words_of(const at::Tensor& scales, const at::Tensor& zeros) const {
    const auto halves = scales.to(dtype).view(at::kShort).to(at::kInt).bitwise_and(0xFFFF);
    return halves + zeros.to(at::kInt).bitwise_left_shift(16);
  }
  /// The way back into panels, from words [groups, n] on the CPU.
  void put_words(const at::Tensor& words, kernels::PanelTensors& panels) const {
    const auto halves = words.bitwise_and(0xFFFF).to(at::kShort).view(dtype);
    panels.scales = kernels::by_panel(panels.shape, halves.to(at::kFloat));
    panels.zeros = kernels::by_panel(
        panels.shape, words.bitwise_right_shift(16).to(panels.zeros.scalar_type()));
  }

 private:
  void multiply_dense(const at::Tensor& x, const at::Tensor& bias, at::Tensor& y) const {
    constexpr std::int64_t kSlab = std::int64_t{1} << 27;  // weights of a slab
    const std::int64_t height = std::max<std::int64_t>(kSlab / k / kBandOutputs, 1) * kBandOutputs;
    for (std::int64_t first = 0; first < n; first += height) {
      const std::int64_t count = std::min(height, n - first);
      const auto weight = rows(first, count, dense_dtype(x.scalar_type())).to(x.scalar_type());
      auto part = at::mm(x, weight.t());
      if (bias.defined())
        part = (part.to(at::kFloat) + bias.narrow(0, first, count)).to(x.scalar_type());
      y.narrow(1, first, count).copy_(part);
    }
  }
};

}  // namespace graft::cuda
