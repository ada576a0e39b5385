#include "cuda/dequantize.h"

#include "cuda/device_math.cuh"

namespace graft::cuda {
namespace {

constexpr int kWarps = 8;

template <class T>
__device__ __forceinline__ void store8(T* out, const float (&values)[8]) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<uint4*>(out) =
        uint4{pack<T>(values[0], values[1]), pack<T>(values[2], values[3]),
              pack<T>(values[4], values[5]), pack<T>(values[6], values[7])};
  } else {
    *reinterpret_cast<float4*>(out) = float4{values[0], values[1], values[2], values[3]};
    *reinterpret_cast<float4*>(out + 4) = float4{values[4], values[5], values[6], values[7]};
  }
}

/// A tile of 16 outputs x 64 inputs a warp; a lane takes one step of 16 inputs of two outputs, so
/// that the four lanes of a pair of outputs write whole lines.
template <class T, CodeKind kKind>
__global__ void __launch_bounds__(kWarps * 32)
    dequantize_kernel(FragmentShape shape, const std::uint32_t* codes, const std::uint32_t* words,
                      const float* table, bool is_bf16, std::int64_t first, std::int64_t count,
                      T* out) {
  __shared__ float levels[16];
  if constexpr (kKind == CodeKind::table4) {
    if (threadIdx.x < 16) levels[threadIdx.x] = table[threadIdx.x];
    __syncthreads();
  }
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, step = lane % 4;
  const std::int64_t of_band = unit % (4 * shape.steps);
  const std::int64_t band = first / kBandOutputs + unit / (4 * shape.steps);
  const std::int64_t tile = of_band % 4, k = of_band / 4 * kTileInputs + step * 16;
  const std::int64_t n = band * kBandOutputs + tile * kTileOutputs + lane / 4 * 2;
  if (n >= first + count || k >= shape.k) return;
  const std::uint32_t* at = codes + (band * 4 * shape.steps + of_band) * 128 + lane / 4 * 16 + step;
  std::uint32_t packed[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) packed[t] = at[4 * t];
  const auto* word =
      reinterpret_cast<const uint2*>(words + word_place(shape, n, k >> shape.group_shift));
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const std::uint32_t w = row == 0 ? word->x : word->y;
    const float scale = kKind == CodeKind::table4 ? __uint_as_float(w)
                        : is_bf16                 ? scale_of<__nv_bfloat16>(w)
                                                  : scale_of<__half>(w);
    const float zero = kKind == CodeKind::table4 ? 0 : static_cast<float>(w >> 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int reg = row + 2 * half, odd = i % 2;
        const int shift = kKind == CodeKind::int4 ? 4 * reg + 16 * odd : 8 * reg + 4 * odd;
        const std::uint32_t code = packed[i / 2] >> shift & 15;
        if constexpr (kKind == CodeKind::table4)
          values[i] = levels[code] * scale;
        else
          values[i] = (static_cast<float>(code) - zero) * scale;
      }
      if (k + half * 8 < shape.k)
        store8<T>(out + (n + row - first) * shape.k + k + half * 8, values);
    }
  }
}

template <class T>
cudaError_t run(const Fragments& weight, std::int64_t first, std::int64_t count, T* out,
                cudaStream_t stream) {
  const auto& shape = weight.shape;
  const std::int64_t units = (count + kBandOutputs - 1) / kBandOutputs * 4 * shape.steps;
  const auto blocks = static_cast<unsigned>((units + kWarps - 1) / kWarps);
  const auto* codes = static_cast<const std::uint32_t*>(weight.codes);
  const bool bf16 = weight.element == Element::bf16;
  if (shape.kind == CodeKind::int4)
    dequantize_kernel<T, CodeKind::int4><<<blocks, kWarps * 32, 0, stream>>>(
        shape, codes, weight.words, nullptr, bf16, first, count, out);
  else
    dequantize_kernel<T, CodeKind::table4><<<blocks, kWarps * 32, 0, stream>>>(
        shape, codes, weight.words, weight.table, bf16, first, count, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t dequantize(const Fragments& weight, std::int64_t first, std::int64_t count,
                       DenseType type, void* out, cudaStream_t stream) {
  if (first % kBandOutputs != 0 || count < 1 || first + count > weight.shape.n)
    return cudaErrorInvalidValue;
  switch (type) {
    case DenseType::f16:
      return run(weight, first, count, static_cast<__half*>(out), stream);
    case DenseType::bf16:
      return run(weight, first, count, static_cast<__nv_bfloat16*>(out), stream);
    case DenseType::f32:
      return run(weight, first, count, static_cast<float*>(out), stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace graft::cuda
