#include "cuda/byte_product.h"

#include <algorithm>

#include "cuda/device_math.cuh"
#include "cuda/launch.cuh"

namespace graft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kOutputs = 4;   // of a block, whose threads take runs of inputs in turn
constexpr int kMostPass = 8;  // rows that a launch multiplies
constexpr int kRun = static_cast<int>(kByteRun);

constexpr float kMagic = 8388608;  // 2^23: | code in the bits of it is 2^23 + code

/// What comes off the magic number with a code to leave code - zero, exactly.
__device__ __forceinline__ float magic_and_zero(std::uint32_t word) {
  return kMagic + static_cast<float>(word >> 16);
}
/// Code i of four in a word, less the zero point.
__device__ __forceinline__ float centred_byte(std::uint32_t codes, int i, float magic_and_zero) {
  return __uint_as_float(__byte_perm(codes, 0x4B000000, 0x7440U + static_cast<unsigned>(i))) -
         magic_and_zero;
}

/// `m` rows, kRows at most.
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads)
    product_kernel(ByteWeight w, int m, const T* x, std::int64_t x_stride, T* y,
                   std::int64_t y_stride, const float* bias) {
  constexpr int kWarps = kThreads / 32, kSums = kOutputs * kRows;
  __shared__ float sums[kWarps][kSums];
  const int k = static_cast<int>(w.k), n = static_cast<int>(w.n);
  const int group = static_cast<int>(w.group), groups = (k + group - 1) / group;
  const int first = static_cast<int>(blockIdx.x) * kOutputs;
  float total[kOutputs][kRows] = {};
  for (int at = static_cast<int>(threadIdx.x) * kRun; at < k; at += kThreads * kRun) {
    uint4 codes[kOutputs];
    std::uint32_t words[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const std::int64_t output = min(first + o, n - 1);
      codes[o] = *reinterpret_cast<const uint4*>(w.codes + output * k + at);
      words[o] = w.words[output * groups + at / group];
    }
#pragma unroll 1  // both at once would take twice the registers
    for (int half = 0; half < 2; ++half) {
      float weight[kOutputs][8];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const std::uint32_t low = half == 0 ? codes[o].x : codes[o].z;
        const std::uint32_t high = half == 0 ? codes[o].y : codes[o].w;
        const float zero = magic_and_zero(words[o]);
#pragma unroll
        for (int i = 0; i < 8; ++i) weight[o][i] = centred_byte(i < 4 ? low : high, i % 4, zero);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 packed =
            *reinterpret_cast<const uint4*>(x + min(r, m - 1) * x_stride + at + half * 8);
        const std::uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
        float of_x[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto pair = as_pair<T>(pairs[i]);
          of_x[2 * i] = to_float(pair.x);
          of_x[2 * i + 1] = to_float(pair.y);
        }
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          float part = 0;
#pragma unroll
          for (int i = 0; i < 8; ++i) part += weight[o][i] * of_x[i];
          total[o][r] += scale_of<T>(words[o]) * part;
        }
      }
    }
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    float sum = total[i / kRows][i % kRows];
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xFFFFFFFF, sum, apart);
    if (lane == 0) sums[warp][i] = sum;
  }
  __syncthreads();
  const int of_block = static_cast<int>(threadIdx.x);
  const int output = first + of_block / kRows, row = of_block % kRows;
  if (of_block >= kSums || output >= n || row >= m) return;
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += sums[i][of_block];
  if (bias) sum += bias[output];
  y[row * y_stride + output] = from_float<T>(sum);
}

/// Eight numbers a thread.
template <class T, class Scale>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(ByteWeight w, std::int64_t first, std::int64_t count, T* out) {
  const std::int64_t eighth = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t groups = (w.k + w.group - 1) / w.group;
  const std::int64_t row = eighth / (w.k / 8), at = eighth % (w.k / 8) * 8;
  if (row >= count) return;
  const uint2 codes = *reinterpret_cast<const uint2*>(w.codes + (first + row) * w.k + at);
  const std::uint32_t word = w.words[(first + row) * groups + at / w.group];
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    values[i] = centred_byte(i < 4 ? codes.x : codes.y, i % 4, magic_and_zero(word)) *
                scale_of<Scale>(word);
  *reinterpret_cast<Eight<T>*>(out + row * w.k + at) = eight<T>(values);
}

bool is_valid(const ByteWeight& w) {
  return fits_bytes(w.n, w.k, w.group) && w.n <= INT32_MAX - kOutputs &&
         w.k <= INT32_MAX - kThreads * kRun;
}

template <class T, int kRows>
cudaError_t launch(const ByteProductArgs& a, cudaStream_t stream) {
  return launch_kernel(product_kernel<T, kRows>,
                       static_cast<unsigned>((a.weight.n + kOutputs - 1) / kOutputs), kThreads,
                       stream, a.weight, static_cast<int>(a.m), static_cast<const T*>(a.x),
                       a.x_stride, static_cast<T*>(a.y), a.y_stride, a.bias);
}

template <class T>
cudaError_t multiply(const ByteProductArgs& args, cudaStream_t stream) {
  ByteProductArgs part = args;
  for (std::int64_t done = 0; done < args.m; done += kMostPass) {
    part.m = std::min<std::int64_t>(kMostPass, args.m - done);
    part.x = static_cast<const T*>(args.x) + done * args.x_stride;
    part.y = static_cast<T*>(args.y) + done * args.y_stride;
    const auto error = part.m == 1   ? launch<T, 1>(part, stream)
                       : part.m == 2 ? launch<T, 2>(part, stream)
                       : part.m <= 4 ? launch<T, 4>(part, stream)
                                     : launch<T, 8>(part, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t dequantize(const ByteWeight& w, std::int64_t first, std::int64_t count, void* out,
                       cudaStream_t stream) {
  const auto kernel = w.element == Element::f16 ? dequantize_kernel<T, __half>
                                                : dequantize_kernel<T, __nv_bfloat16>;
  const std::int64_t blocks = (count * (w.k / 8) + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  return launch_kernel(kernel, static_cast<unsigned>(blocks), kThreads, stream, w, first, count,
                       static_cast<T*>(out));
}

}  // namespace

cudaError_t multiply_bytes(const ByteProductArgs& args, cudaStream_t stream) {
  if (!is_valid(args.weight) || args.m < 0 || args.x_stride % 8 != 0) return cudaErrorInvalidValue;
  return args.weight.element == Element::f16 ? multiply<__half>(args, stream)
                                             : multiply<__nv_bfloat16>(args, stream);
}

cudaError_t dequantize_bytes(const ByteWeight& weight, std::int64_t first, std::int64_t count,
                             DenseType type, void* out, cudaStream_t stream) {
  if (!is_valid(weight) || first < 0 || count < 1 || first + count > weight.n)
    return cudaErrorInvalidValue;
  switch (type) {
    case DenseType::f16:
      return dequantize<__half>(weight, first, count, out, stream);
    case DenseType::bf16:
      return dequantize<__nv_bfloat16>(weight, first, count, out, stream);
    case DenseType::f32:
      return dequantize<float>(weight, first, count, out, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace graft::cuda
