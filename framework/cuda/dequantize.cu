#include "cuda/dequantize.h"

#include "cuda/device_math.cuh"
#include "cuda/launch.cuh"

namespace graft::cuda {
namespace {

constexpr int kWarps = 8;

/// Of neighbouring lanes, which have one step of 16 inputs each as two halves: the even one gets
/// the first halves of both, the odd one the second ones, so that one store of both fills 32 bytes.
template <class T>
__device__ __forceinline__ void swap_halves(Eight<T> (&halves)[2], bool odd) {
#pragma unroll
  for (std::size_t i = 0; i < sizeof(T) / 2; ++i) {
    const uint4 mine = odd ? halves[0].words[i] : halves[1].words[i];
    const uint4 theirs{
        __shfl_xor_sync(0xFFFFFFFF, mine.x, 1), __shfl_xor_sync(0xFFFFFFFF, mine.y, 1),
        __shfl_xor_sync(0xFFFFFFFF, mine.z, 1), __shfl_xor_sync(0xFFFFFFFF, mine.w, 1)};
    if (odd)
      halves[0].words[i] = theirs;
    else
      halves[1].words[i] = theirs;
  }
}

/// A tile of 16 outputs x 64 inputs a warp; a lane takes one step of 16 inputs of two outputs.
/// Blocks: x: tiles of a band, y: bands.
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
  const int of_band = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (of_band >= 4 * shape.steps) return;
  const int lane = threadIdx.x % 32, step = lane % 4;
  const std::int64_t band = first / kBandOutputs + blockIdx.y;
  const int tile_k = of_band / 4 * static_cast<int>(kTileInputs), k = tile_k + step * 16;
  const std::int64_t n = band * kBandOutputs + of_band % 4 * kTileOutputs + lane / 4 * 2;
  const std::uint32_t* at = codes + (band * 4 * shape.steps + of_band) * 128 + lane / 4 * 16 + step;
  std::uint32_t packed[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) packed[t] = at[4 * t];
  const auto* word =
      reinterpret_cast<const uint2*>(words + word_place(shape, n, k >> shape.group_shift));
  const uint2 two = *word;
  // Where this lane stores: half `step % 2` of the even step, then of the odd one.
  const int stored_k = tile_k + step / 2 * 32 + step % 2 * 8;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const std::uint32_t w = row == 0 ? two.x : two.y;
    const float scale = kKind == CodeKind::table4 ? __uint_as_float(w)
                        : is_bf16                 ? scale_of<__nv_bfloat16>(w)
                                                  : scale_of<__half>(w);
    const float zero = kKind == CodeKind::table4 ? 0 : static_cast<float>(w >> 16);
    Eight<T> halves[2];
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
      halves[half] = eight<T>(values);
    }
    swap_halves<T>(halves, step % 2 == 1);
#pragma unroll
    for (int of = 0; of < 2; ++of) {
      if (n + row >= first + count || stored_k + of * 16 >= shape.k) continue;
      auto* to = reinterpret_cast<uint4*>(out + (n + row - first) * shape.k + stored_k + of * 16);
#pragma unroll
      for (std::size_t i = 0; i < sizeof(T) / 2; ++i) to[i] = halves[of].words[i];
    }
  }
}

template <class T>
cudaError_t run(const Fragments& weight, std::int64_t first, std::int64_t count, T* out,
                cudaStream_t stream) {
  const auto& shape = weight.shape;
  const dim3 blocks(static_cast<unsigned>((4 * shape.steps + kWarps - 1) / kWarps),
                    static_cast<unsigned>((count + kBandOutputs - 1) / kBandOutputs));
  const auto* codes = static_cast<const std::uint32_t*>(weight.codes);
  const bool bf16 = weight.element == Element::bf16;
  const auto kernel = shape.kind == CodeKind::int4 ? dequantize_kernel<T, CodeKind::int4>
                                                   : dequantize_kernel<T, CodeKind::table4>;
  return launch_kernel(kernel, blocks, kWarps * 32, stream, shape, codes, weight.words,
                       weight.table, bf16, first, count, out);
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
