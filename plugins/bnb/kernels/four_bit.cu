#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cuda/device_math.cuh"
#include "cuda/launch.cuh"
#include "kernels/four_bit_cuda.h"

namespace graft::bnb {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 8;     // elements of a thread at a time
constexpr int kUnroll = 4;  // runs of a thread

/// How many borders are below a value: borders as a heap for four comparisons, or, where they are
/// far enough apart, the one border in each of 32 equal pieces of [-1, 1] for one comparison.
struct Search {
  float heap[16];
  float border[32];          ///< of a piece, infinity when it has none
  std::uint32_t before[32];  ///< borders in the pieces before
  std::uint64_t codes;       ///< by the number of borders below, four bits each
};

/// The piece that a value in [-1, 1] is in, in the lowest five bits. Rises with the value, which is
/// all that matters.
__host__ __device__ __forceinline__ std::uint32_t piece_of(float value) {
  constexpr float kMagic = 8388608.0F + 16.0F;  // ulp 1: the sum is rounded to a whole number
#if defined(__CUDA_ARCH__)
  return __float_as_uint(__fmaf_rn(value, 15.49F, kMagic));
#else
  const float sum = std::fmaf(value, 15.49F, kMagic);
  std::uint32_t bits;
  std::memcpy(&bits, &sum, 4);
  return bits;
#endif
}

Search search_of(QuantType type) {
  Search out{};
  const Thresholds& t = thresholds(type);
  for (int i = 0; i < 15; ++i) {
    // The border before which i others lie is at the heap's place in which an in-order walk comes
    // to it.
    int node = 1, first = 0, size = 15;
    while (i != first + size / 2) {
      size /= 2;
      if (i > first + size) {
        first += size + 1;
        node = 2 * node + 1;
      } else {
        node = 2 * node;
      }
    }
    out.heap[node] = t.borders[static_cast<std::size_t>(i)];
  }
  for (int i = 0; i < 16; ++i)
    out.codes |= static_cast<std::uint64_t>(t.codes[static_cast<std::size_t>(i)]) << (4 * i);
  std::uint32_t before = 0;
  for (std::uint32_t piece = 0; piece < 32; ++piece) {
    out.border[piece] = INFINITY;
    out.before[piece] = before;
    for (const float border : t.borders)
      if ((piece_of(border) & 31) == piece) {
        out.border[piece] = border;
        ++before;
      }
  }
  return out;
}

/// NF4, whose codes rise with the value.
__device__ __forceinline__ std::uint32_t nf4_code(float scaled, const float* border,
                                                  const std::uint32_t* before) {
  const std::uint32_t piece = piece_of(scaled) & 31;
  return before[piece] + (scaled > border[piece] ? 1 : 0);
}

__device__ __forceinline__ std::uint32_t heap_code(float scaled, const Search& s,
                                                   const float* heap) {
  int node = scaled > s.heap[1] ? 3 : 2;
  node = 2 * node + (scaled > (node == 3 ? s.heap[3] : s.heap[2]));
  node = 2 * node + (scaled > heap[node]);
  node = 2 * node + (scaled > heap[node]);
  return static_cast<std::uint32_t>(s.codes >> (4 * (node & 15))) & 15;
}

/// Eight elements as they are in memory.
template <class T>
struct Run {
  uint4 raw[sizeof(T) / 2];

  __device__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i)
      raw[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
  }
  __device__ void clear() {
#pragma unroll
    for (auto& part : raw) part = uint4{0, 0, 0, 0};
  }
  __device__ void widen(float (&to)[kRun]) const {
    if constexpr (sizeof(T) == 2) {
      const std::uint32_t pairs[4] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto pair = cuda::as_pair<T>(pairs[i]);
        to[2 * i] = cuda::to_float(pair.x);
        to[2 * i + 1] = cuda::to_float(pair.y);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[4 * i] = __uint_as_float(raw[i].x);
        to[4 * i + 1] = __uint_as_float(raw[i].y);
        to[4 * i + 2] = __uint_as_float(raw[i].z);
        to[4 * i + 3] = __uint_as_float(raw[i].w);
      }
    }
  }
};

/// Whole blocks of kRun * kLanes elements.
template <class T, int kLanes, QuantType kType>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* x, std::int64_t runs, const __grid_constant__ Search search,
                    std::uint32_t* packed, float* absmax, int* not_finite) {
  __shared__ float heap[16], border[32];
  __shared__ std::uint32_t before[32];
  if (threadIdx.x < 16) heap[threadIdx.x] = search.heap[threadIdx.x];
  if (threadIdx.x < 32) {
    border[threadIdx.x] = search.border[threadIdx.x];
    before[threadIdx.x] = search.before[threadIdx.x];
  }
  const std::int64_t first =
      static_cast<std::int64_t>(blockIdx.x) * (kThreads * kUnroll) + threadIdx.x;
  Run<T> loaded[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t run = first + u * kThreads;
    if (run < runs)
      loaded[u].load(x + run * kRun);
    else
      loaded[u].clear();
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t run = first + u * kThreads;
    float values[kRun];
    loaded[u].widen(values);
    // As whole numbers magnitudes rise with their bits, infinity and NaN above all.
    std::uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) bits = max(bits, __float_as_uint(values[i]) & 0x7FFFFFFF);
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2)
      bits = max(bits, __shfl_xor_sync(0xFFFFFFFF, bits, apart));
    if (bits >= 0x7F800000) *not_finite = 1;
    const float most = __uint_as_float(bits);
    const float reciprocal = 1.0F / fmaxf(most, 1e-38F);
    std::uint32_t out = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {  // even elements in the high nibble
      const float scaled = __fmul_rn(values[i], reciprocal);
      const std::uint32_t code = kType == QuantType::nf4 ? nf4_code(scaled, border, before)
                                                         : heap_code(scaled, search, heap);
      out |= code << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
    }
    if (run < runs) {
      packed[run] = out;
      if (threadIdx.x % kLanes == 0) absmax[run / kLanes] = most;
    }
  }
}

/// Any block, a warp each; the last one may be short, and is divided by its absmax, not multiplied.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_any_kernel(const T* x, std::int64_t count, std::int64_t blocksize, std::int64_t first,
                        const __grid_constant__ Search search, std::uint8_t* packed, float* absmax,
                        int* not_finite) {
  __shared__ float heap[16];
  if (threadIdx.x < 16) heap[threadIdx.x] = search.heap[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const std::int64_t block = first + blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  const std::int64_t begin = block * blocksize;
  if (begin >= count) return;
  const std::int64_t end = min(begin + blocksize, count);
  const auto value_at = [&](std::int64_t i) {
    if constexpr (sizeof(T) == 2)
      return cuda::to_float(x[i]);
    else
      return x[i];
  };
  float most = 0;
  bool bad = false;
  for (std::int64_t i = begin + lane; i < end; i += 32) {
    const float magnitude = fabsf(value_at(i));
    bad |= !(magnitude <= FLT_MAX);
    most = fmaxf(most, magnitude);
  }
  for (int apart = 1; apart < 32; apart *= 2)
    most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
  if (bad) *not_finite = 1;
  const bool partial = end - begin < blocksize;
  const float divisor = fmaxf(most, 1e-38F), reciprocal = 1.0F / divisor;
  const auto code = [&](std::int64_t i) {
    const float value = value_at(i);
    return heap_code(partial ? value / divisor : __fmul_rn(value, reciprocal), search, heap);
  };
  for (std::int64_t i = begin + 2 * lane; i < end; i += 64) {
    const std::uint32_t low = i + 1 < end ? code(i + 1) : heap_code(0.0F, search, heap);
    packed[i / 2] = static_cast<std::uint8_t>(code(i) << 4 | low);
  }
  if (lane == 0) absmax[block] = partial ? divisor : most;
}

template <class T>
cudaError_t quantize(const T* x, std::int64_t count, std::int64_t blocksize, QuantType quant,
                     std::uint8_t* packed, float* absmax, int* not_finite, cudaStream_t stream) {
  const Search search = search_of(quant);
  const std::int64_t blocks = (count + blocksize - 1) / blocksize, whole = count / blocksize;
  const int lanes = blocksize <= 256 ? static_cast<int>(blocksize / kRun) : 0;
  std::int64_t done = 0;
  cudaError_t error = cudaSuccess;
  const auto run = [&](auto kernel) {
    const std::int64_t runs = whole * lanes, of_block = kThreads * kUnroll;
    error = cuda::launch_kernel(kernel, static_cast<unsigned>((runs + of_block - 1) / of_block),
                                kThreads, stream, x, runs, search,
                                reinterpret_cast<std::uint32_t*>(packed), absmax, not_finite);
    done = whole;
  };
  if (whole > 0) {
    const auto run_lanes = [&](auto nf4, auto fp4) { run(quant == QuantType::nf4 ? nf4 : fp4); };
    constexpr auto kNf4 = QuantType::nf4, kFp4 = QuantType::fp4;
    if (blocksize == 32) run_lanes(quantize_kernel<T, 4, kNf4>, quantize_kernel<T, 4, kFp4>);
    if (blocksize == 64) run_lanes(quantize_kernel<T, 8, kNf4>, quantize_kernel<T, 8, kFp4>);
    if (blocksize == 128) run_lanes(quantize_kernel<T, 16, kNf4>, quantize_kernel<T, 16, kFp4>);
    if (blocksize == 256) run_lanes(quantize_kernel<T, 32, kNf4>, quantize_kernel<T, 32, kFp4>);
  }
  if (error != cudaSuccess || done == blocks) return error;
  constexpr std::int64_t kOfBlock = kThreads / 32;
  return cuda::launch_kernel(quantize_any_kernel<T>,
                             static_cast<unsigned>((blocks - done + kOfBlock - 1) / kOfBlock),
                             kThreads, stream, x, count, blocksize, done, search, packed, absmax,
                             not_finite);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const std::uint8_t* packed, const float* table, const float* absmax,
                      std::int64_t blocksize, std::int64_t count, T* out) {
  __shared__ float levels[16];
  if (threadIdx.x < 16) levels[threadIdx.x] = table[threadIdx.x];
  __syncthreads();
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kRun;
  if (first >= count) return;
  const float scale = absmax[first / blocksize];
  const auto value = [&](std::uint32_t byte, int odd) {
    return levels[odd ? byte & 15 : byte >> 4 & 15] * scale;
  };
  if (first + kRun <= count) {
    const std::uint32_t bytes = *reinterpret_cast<const std::uint32_t*>(packed + first / 2);
    float values[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = value(bytes >> (i / 2 * 8), i % 2);
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint4*>(out + first) =
          uint4{cuda::pack<T>(values[0], values[1]), cuda::pack<T>(values[2], values[3]),
                cuda::pack<T>(values[4], values[5]), cuda::pack<T>(values[6], values[7])};
    } else {
      *reinterpret_cast<float4*>(out + first) = float4{values[0], values[1], values[2], values[3]};
      *reinterpret_cast<float4*>(out + first + 4) =
          float4{values[4], values[5], values[6], values[7]};
    }
    return;
  }
  for (std::int64_t i = first; i < count; ++i) {
    const float one = value(packed[i / 2], static_cast<int>(i % 2));
    if constexpr (sizeof(T) == 2)
      out[i] = cuda::from_float<T>(one);
    else
      out[i] = one;
  }
}

template <class T>
cudaError_t dequantize(const std::uint8_t* packed, const float* table, const float* absmax,
                       std::int64_t blocksize, std::int64_t count, T* out, cudaStream_t stream) {
  constexpr std::int64_t kOfBlock = kThreads * kRun;
  return cuda::launch_kernel(dequantize_kernel<T>,
                             static_cast<unsigned>((count + kOfBlock - 1) / kOfBlock), kThreads,
                             stream, packed, table, absmax, blocksize, count, out);
}

__global__ void nested_kernel(const std::uint8_t* codes, std::int64_t count, const float* map,
                              const float* nested_absmax, std::int64_t nested_blocksize,
                              float offset, float* absmax) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count)  // product and sum rounded one by one, as on the CPU
    absmax[i] = __fadd_rn(__fmul_rn(map[codes[i]], nested_absmax[i / nested_blocksize]), offset);
}

}  // namespace

cudaError_t quantize_blocks_cuda(const void* x, cuda::DenseType type, std::int64_t count,
                                 std::int64_t blocksize, QuantType quant, std::uint8_t* packed,
                                 float* absmax, int* not_finite, cudaStream_t stream) {
  if (count < 1 || blocksize < 2 || blocksize % 2 != 0) return cudaErrorInvalidValue;
  switch (type) {
    case cuda::DenseType::f16:
      return quantize(static_cast<const __half*>(x), count, blocksize, quant, packed, absmax,
                      not_finite, stream);
    case cuda::DenseType::bf16:
      return quantize(static_cast<const __nv_bfloat16*>(x), count, blocksize, quant, packed, absmax,
                      not_finite, stream);
    case cuda::DenseType::f32:
      return quantize(static_cast<const float*>(x), count, blocksize, quant, packed, absmax,
                      not_finite, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t dequantize_blocks_cuda(const std::uint8_t* packed, const float* table,
                                   const float* absmax, std::int64_t blocksize, std::int64_t count,
                                   cuda::DenseType type, void* out, cudaStream_t stream) {
  if (count < 1 || (blocksize % kRun != 0 && blocksize < count)) return cudaErrorInvalidValue;
  switch (type) {
    case cuda::DenseType::f16:
      return dequantize(packed, table, absmax, blocksize, count, static_cast<__half*>(out), stream);
    case cuda::DenseType::bf16:
      return dequantize(packed, table, absmax, blocksize, count, static_cast<__nv_bfloat16*>(out),
                        stream);
    case cuda::DenseType::f32:
      return dequantize(packed, table, absmax, blocksize, count, static_cast<float*>(out), stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t dequantize_nested_cuda(const std::uint8_t* codes, std::int64_t count, const float* map,
                                   const float* nested_absmax, std::int64_t nested_blocksize,
                                   float offset, float* absmax, cudaStream_t stream) {
  return cuda::launch_kernel(nested_kernel,
                             static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads,
                             stream, codes, count, map, nested_absmax, nested_blocksize, offset,
                             absmax);
}

}  // namespace graft::bnb
