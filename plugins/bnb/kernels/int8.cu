#include <algorithm>
#include <cmath>

#include "cuda/device_math.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/shared_memory.cuh"
#include "kernels/int8_cuda.h"

namespace graft::bnb {
namespace {

constexpr float kOneOver127 = 7.874015718698502e-3F;  // 1/127 as bitsandbytes writes it
constexpr float kOneOver16129 = static_cast<float>(1.0 / 16129.0);
constexpr int kThreads = 256;

template <class T>
__device__ __forceinline__ float element(const T* x, std::int64_t i) {
  if constexpr (sizeof(T) == 2)
    return cuda::to_float(x[i]);
  else
    return x[i];
}
/// x passes through float16 on its way to int8, as in bitsandbytes.
template <class T>
__device__ __forceinline__ float half_of(const T* x, std::int64_t i) {
  return __half2float(__float2half_rn(element(x, i)));
}
template <class T>
__device__ __forceinline__ T rounded(float value) {
  if constexpr (sizeof(T) == 2)
    return cuda::from_float<T>(value);
  else
    return value;
}

struct Workspace {
  std::int8_t* codes;    // [m][k]
  float* absmax;         // [m]
  std::uint32_t* marks;  // [k / 32] rounded up: columns that leave int8
  int* columns;          // [k]: those columns
  int* count;            // of them
};

std::size_t round_up_16(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

Workspace workspace_of(void* memory, std::int64_t m, std::int64_t k) {
  auto* at = static_cast<char*>(memory);
  const auto take = [&](std::int64_t bytes) {
    char* out = at;
    at += round_up_16(static_cast<std::size_t>(bytes));
    return out;
  };
  Workspace w;
  w.codes = reinterpret_cast<std::int8_t*>(take(m * k));
  w.absmax = reinterpret_cast<float*>(take(m * 4));
  w.columns = reinterpret_cast<int*>(take(k * 4));
  // marks and count are zeroed together.
  w.marks = reinterpret_cast<std::uint32_t*>(take((k + 31) / 32 * 4 + 4));
  w.count = reinterpret_cast<int*>(w.marks + (k + 31) / 32);
  return w;
}

/// A row a block: its absmax without elements that reach the threshold, whose columns are marked.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scan_kernel(const T* x, std::int64_t k, float threshold, Workspace w) {
  __shared__ float largest[kThreads / 32];
  const T* row = x + blockIdx.x * k;
  float most = 0;
  bool nan = false;
  for (std::int64_t i = threadIdx.x; i < k; i += kThreads) {
    const float magnitude = fabsf(half_of(row, i));
    nan |= isnan(magnitude);
    if (threshold > 0 && magnitude >= threshold)
      atomicOr(w.marks + i / 32, 1U << (i % 32));
    else
      most = fmaxf(most, magnitude);
  }
  if (nan) most = INFINITY;
  for (int apart = 1; apart < 32; apart *= 2)
    most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFF, most, apart));
  if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / 32; ++i) most = fmaxf(most, largest[i]);
    w.absmax[blockIdx.x] = isfinite(most) ? most : NAN;
  }
}

/// The marked columns in rising order; one block.
__global__ void __launch_bounds__(1024) list_kernel(std::int64_t k, Workspace w) {
  __shared__ int before[1024];
  int total = 0;
  for (std::int64_t first = 0; first < (k + 31) / 32; first += 1024) {
    const std::int64_t at = first + threadIdx.x;
    const std::uint32_t bits = at < (k + 31) / 32 ? w.marks[at] : 0;
    before[threadIdx.x] = __popc(bits);
    __syncthreads();
    for (int apart = 1; apart < 1024; apart *= 2) {
      const int more = threadIdx.x >= apart ? before[threadIdx.x - apart] : 0;
      __syncthreads();
      before[threadIdx.x] += more;
      __syncthreads();
    }
    int place = total + before[threadIdx.x] - __popc(bits);
    for (std::uint32_t rest = bits; rest != 0; rest &= rest - 1)
      w.columns[place++] = static_cast<int>(at * 32) + __ffs(static_cast<int>(rest)) - 1;
    total += before[1023];
    __syncthreads();
  }
  if (threadIdx.x == 0) *w.count = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const T* x, std::int64_t k, Workspace w) {
  const std::int64_t row = blockIdx.x;
  const float absmax = w.absmax[row];
  const float scale = absmax > 0 ? __fmul_rn(1.0F / absmax, 127.0F) : 0;  // NaN: 0
  for (std::int64_t i = threadIdx.x; i < k; i += kThreads) {
    const float scaled = __fmul_rn(half_of(x + row * k, i), scale);
    const bool marked = w.marks[i / 32] >> (i % 32) & 1;
    w.codes[row * k + i] =
        static_cast<std::int8_t>(marked || !(fabsf(scaled) <= 127.5F) ? 0 : __float2int_rn(scaled));
  }
}

// A block multiplies 64 outputs by 64 rows; four warps, 32 x 32 each; steps of 64 inputs through
// two stages of shared memory, in rows of 64 bytes whose 16-byte pieces are swapped about so that
// ldmatrix meets no bank twice.
constexpr int kTile = 64, kStep = 64;

__device__ __forceinline__ std::uint32_t place(int row, int piece) {
  return static_cast<std::uint32_t>(row * kStep + ((piece ^ (row >> 1 & 3)) << 4));
}

template <class T>
__global__ void __launch_bounds__(128)
    product_kernel(const std::int8_t* weight, const float* scales, std::int64_t m, std::int64_t n,
                   std::int64_t k, const T* x, T* y, const float* bias, Workspace w) {
  __shared__ __align__(128) char shared[2][2][kTile * kStep];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t first_n = static_cast<std::int64_t>(blockIdx.x) * kTile;
  const std::int64_t first_m = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const auto base = cuda::shared_address(shared);

  const auto fetch = [&](int stage, std::int64_t step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int chunk = i * 128 + static_cast<int>(threadIdx.x);  // of 2 * 64 rows of 4 pieces
      const int side = chunk / 256, row = chunk / 4 % 64, piece = chunk % 4;
      const std::int64_t at = step * kStep + piece * 16;
      const std::int64_t line = (side == 0 ? first_n : first_m) + row;
      const bool inside = at < k && line < (side == 0 ? n : m);
      const std::int8_t* from = (side == 0 ? weight : w.codes) + (inside ? line * k + at : 0);
      cuda::copy(base + (stage * 2 + side) * (kTile * kStep) + place(row, piece), from,
                 inside ? 16 : 0);
    }
    cuda::commit_copies();
  };

  int sums[2][4][4] = {};  // [16 outputs][8 rows]
  const std::int64_t steps = (k + kStep - 1) / kStep;
  fetch(0, 0);
  for (std::int64_t step = 0; step < steps; ++step) {
    if (step + 1 < steps)
      fetch(static_cast<int>((step + 1) & 1), step + 1);
    else
      cuda::commit_copies();
    cuda::wait_for_copies<1>();
    __syncthreads();
    const std::uint32_t at = base + static_cast<std::uint32_t>((step & 1) * 2 * (kTile * kStep));
    const int outputs = warp % 2 * 32, rows = warp / 2 * 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 32 inputs, two pieces
      std::uint32_t a[2][4], b[2][4];  // b: of 8 rows and 8 more
#pragma unroll
      for (int i = 0; i < 2; ++i)
        cuda::load_matrices(a[i],
                            at + place(outputs + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        cuda::load_matrices(b[j], at + kTile * kStep +
                                      place(rows + j * 16 + (lane >> 4) * 8 + (lane & 7),
                                            half * 2 + (lane >> 3 & 1)));
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          cuda::mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    __syncthreads();
  }

  const int outliers = *w.count;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::int64_t output =
            first_n + warp % 2 * 32 + i * 16 + (lane >> 2) + (e >= 2 ? 8 : 0);
        const std::int64_t row = first_m + warp / 2 * 32 + j * 8 + (lane & 3) * 2 + e % 2;
        if (output >= n || row >= m) continue;
        const float scale = scales[output];
        float sum =
            __fmul_rn(__fmul_rn(static_cast<float>(sums[i][j][e]), __fmul_rn(w.absmax[row], scale)),
                      kOneOver16129);
        for (int o = 0; o < outliers; ++o) {
          const int column = w.columns[o];
          const T plain = rounded<T>(__fmul_rn(
              __fmul_rn(static_cast<float>(weight[output * k + column]), scale), kOneOver127));
          sum = __fadd_rn(sum, __fmul_rn(element(x, row * k + column), element(&plain, 0)));
        }
        if (bias) sum = __fadd_rn(sum, bias[output]);
        y[row * n + output] = rounded<T>(sum);
      }
}

template <class T>
cudaError_t run(const RowInt8Cuda& a, cudaStream_t stream) {
  const Workspace w = workspace_of(a.workspace, a.m, a.k);
  const auto* x = static_cast<const T*>(a.x);
  if (const auto error =
          cudaMemsetAsync(w.marks, 0, static_cast<std::size_t>((a.k + 31) / 32 * 4 + 4), stream);
      error != cudaSuccess)
    return error;
  const auto rows = static_cast<unsigned>(a.m);
  auto error = cuda::launch_kernel(scan_kernel<T>, rows, kThreads, stream, x, a.k, a.threshold, w);
  if (error == cudaSuccess && a.threshold > 0)
    error = cuda::launch_kernel(list_kernel, 1, 1024, stream, a.k, w);
  if (error == cudaSuccess)
    error = cuda::launch_kernel(quantize_kernel<T>, rows, kThreads, stream, x, a.k, w);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((a.n + kTile - 1) / kTile),
                  static_cast<unsigned>((a.m + kTile - 1) / kTile));
  return cuda::launch_kernel(product_kernel<T>, grid, 128, stream, a.weight, a.scales, a.m, a.n,
                             a.k, x, static_cast<T*>(a.y), a.bias, w);
}

}  // namespace

std::size_t row_int8_workspace(std::int64_t m, std::int64_t k) {
  return round_up_16(static_cast<std::size_t>(m * k)) +
         round_up_16(static_cast<std::size_t>(m * 4)) +
         round_up_16(static_cast<std::size_t>(k * 4)) +
         round_up_16(static_cast<std::size_t>((k + 31) / 32 * 4 + 4));
}

cudaError_t multiply_rows_int8_cuda(const RowInt8Cuda& args, cudaStream_t stream) {
  if (args.m == 0) return cudaSuccess;
  if (args.m < 0 || args.n < 1 || args.k < 16 || args.k % 16 != 0 || args.k >= 1 << 17 ||
      args.m > 65535 * kTile)
    return cudaErrorInvalidValue;
  switch (args.type) {
    case cuda::DenseType::f16:
      return run<__half>(args, stream);
    case cuda::DenseType::bf16:
      return run<__nv_bfloat16>(args, stream);
    case cuda::DenseType::f32:
      return run<float>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace graft::bnb
