#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "cuda/dequantize.h"
#include "cuda/pack.h"
#include "cuda/product.h"

// Random weights on a device for tests and benchmarks, and the kernels as functions of tensors.

namespace graft::test {

/// The process ends where CUDA says no: nothing after that can be trusted.
inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline const std::uint32_t* words_of(const at::Tensor& tensor) {
  return reinterpret_cast<const std::uint32_t*>(tensor.const_data_ptr<int>());
}

struct PackedWeight {
  cuda::FragmentShape shape;
  cuda::Element element = cuda::Element::bf16;
  at::Tensor codes, words, table;         ///< as the kernels take them
  at::Tensor plain_codes, zeros, scales;  ///< [n, k] int32; [n, groups] float64

  cuda::Fragments view() const {
    cuda::Fragments out;
    out.shape = shape;
    out.codes = codes.const_data_ptr();
    out.words = words_of(words);
    out.table = table.defined() ? table.const_data_ptr<float>() : nullptr;
    out.element = element;
    return out;
  }
  /// [n, k] float64.
  at::Tensor dense() const {
    const auto group = at::arange(shape.k, plain_codes.options().dtype(at::kLong))
                           .bitwise_right_shift(std::min(shape.group_shift, 30));
    const auto scale = scales.index_select(1, group);
    if (shape.kind == cuda::CodeKind::table4)
      return table.to(at::kDouble).index({plain_codes.to(at::kLong)}) * scale;
    return (plain_codes.to(at::kDouble) - zeros.index_select(1, group)) * scale;
  }
};

/// Random codes, scales and zero points from 0 to 16.
inline PackedWeight random_weight(cuda::CodeKind kind, std::int64_t n, std::int64_t k,
                                  std::int64_t group, at::ScalarType dtype = at::kBFloat16) {
  const auto gpu = at::TensorOptions(at::kCUDA);
  PackedWeight w;
  w.shape = cuda::fragment_shape(kind, n, k, group);
  w.element = dtype == at::kHalf ? cuda::Element::f16 : cuda::Element::bf16;
  const auto& s = w.shape;
  w.plain_codes = at::randint(0, 16, {n, k}, gpu.dtype(at::kInt));
  const auto packed = w.plain_codes.view({n, k / 8, 8})
                          .bitwise_left_shift(at::arange(0, 32, 4, gpu.dtype(at::kInt)))
                          .sum(-1, false, at::kInt)
                          .t()
                          .contiguous();
  w.codes = at::empty({s.code_bytes / 4}, gpu.dtype(at::kInt));
  require(cuda::pack_codes(s, words_of(packed), w.codes.mutable_data_ptr(), stream()), "pack");
  auto scales = at::rand({n, s.groups}, gpu) * 0.01 + 0.001;
  const auto zeros = at::randint(0, 17, {n, s.groups}, gpu.dtype(at::kInt));
  at::Tensor words;
  if (kind == cuda::CodeKind::int4) {
    const auto half = scales.to(dtype);
    words = half.view(at::kShort).to(at::kInt).bitwise_and(0xFFFF) + zeros.bitwise_left_shift(16);
    scales = half.to(at::kFloat);
  } else {
    words = scales.view(at::kInt);
    w.table = at::linspace(-1, 1, 16, gpu);
    w.table[7] = 0;
  }
  auto wide = at::zeros({s.bands * cuda::kBandOutputs, s.groups}, gpu.dtype(at::kInt));
  wide.narrow(0, 0, n).copy_(words);
  w.words = wide.view({s.bands, cuda::kBandOutputs, s.groups}).transpose(1, 2).contiguous();
  w.scales = scales.to(at::kDouble);
  w.zeros = zeros.to(at::kDouble);
  return w;
}

inline at::Tensor workspace() {
  static const auto memory = at::zeros({static_cast<std::int64_t>(cuda::workspace_bytes())},
                                       at::device(at::kCUDA).dtype(at::kByte));
  return memory;
}

inline void multiply(const PackedWeight& w, const at::Tensor& x, at::Tensor& y,
                     cuda::Way way = cuda::Way::automatic, int variant = 0,
                     const at::Tensor& bias = {}) {
  cuda::ProductArgs args;
  args.weight = w.view();
  args.m = x.size(0);
  args.x = x.const_data_ptr();
  args.x_stride = x.stride(0);
  args.y = y.mutable_data_ptr();
  args.y_stride = y.stride(0);
  args.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  args.workspace = workspace().mutable_data_ptr();
  require(cuda::multiply_by(way, variant, args, stream()), "multiply");
}

/// Rows of x by segments, each with its weight; `shared`: what they have in common.
inline void multiply_grouped(const PackedWeight& shared,
                             std::span<const cuda::ProductSegment> segments, const at::Tensor& x,
                             at::Tensor& y) {
  cuda::ProductArgs all;
  all.weight = shared.view();
  all.m = x.size(0);
  all.x = x.const_data_ptr();
  all.x_stride = x.stride(0);
  all.y = y.mutable_data_ptr();
  all.y_stride = y.stride(0);
  all.workspace = workspace().mutable_data_ptr();
  require(cuda::multiply_grouped(all, segments, stream()), "multiply_grouped");
}

/// Ways of a product that have a kernel for m rows.
struct Variant {
  cuda::Way way;
  int number;
  const char* name;
  int most_rows;
};
inline constexpr Variant kVariants[] = {
    {cuda::Way::stream, 1, "stream 1", 8},
    {cuda::Way::stream, 2, "stream 2", 64},
    {cuda::Way::stream, 4, "stream 4", 16},
    {cuda::Way::stream, 12, "stream 2 split", 64},
    {cuda::Way::wgmma, 24032, "wgmma 32 by 2", 32},
    {cuda::Way::wgmma, 42032, "wgmma 2x32 by 4", 32},
    {cuda::Way::wgmma, 82032, "wgmma 2x32 by 8", 32},
    {cuda::Way::wgmma, 4032, "wgmma 32", 1 << 30},
    {cuda::Way::wgmma, 2064, "wgmma 64", 1 << 30},
    {cuda::Way::wgmma, 2032, "wgmma 2x32", 1 << 30},
    {cuda::Way::wgmma, 2128, "wgmma 128", 1 << 30},
    {cuda::Way::wgmma, 2256, "wgmma 256", 1 << 30},
    {cuda::Way::automatic, 0, "chosen", 1 << 30},
};

inline bool has_wgmma() {
  int major = 0;
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "device");
  return major == 9;
}

/// |found - expected| / |expected|; NaN is never small.
inline double distance(const at::Tensor& found, const at::Tensor& expected) {
  return ((found.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

}  // namespace graft::test
