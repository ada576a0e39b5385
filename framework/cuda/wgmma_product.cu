#include <cuda.h>

#include <algorithm>

#include "cuda/device_math.cuh"
#include "cuda/launch.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/wgmma_product.h"

namespace graft::cuda {
namespace {

constexpr int kStageInputs = 128;
constexpr int kStageTiles = 2;           // of 64 inputs
constexpr int kBandStage = 2 * 4 * 512;  // bytes of a band's codes
constexpr int kWarpgroup = 128;

__host__ __device__ constexpr int stage_size(int bands, int rows) {
  return rows * 256 + bands * (kBandStage + 1024);
}

struct Params {
  const char* codes;
  const char* words;
  void* y;
  const float* bias;
  float4* partials;
  int* flags;
  std::int64_t y_stride;
  int m, n, bands, steps, groups, group_shift, stages, row_tiles;
  WorkSplit split;
};

std::uint32_t __device__ __forceinline__ shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// mbarrier: PTX ISA, "Parallel synchronization and communication instructions".
__device__ __forceinline__ void init_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(std::uint32_t barrier, int parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void copy_bulk(std::uint32_t to, const void* from, int bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, int column,
                                         int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void meet(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

/// Both halves the scale of a word.
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t word) {
  return __byte_perm(word, 0, 0x1010);
}

enum class GroupSize { of32, of64, more };

/// kBands groups of four warps, kRows rows of x.
template <class T, int kBands, int kRows, GroupSize kGroup>
__global__ void __launch_bounds__(kWarpgroup*(kBands + 1), 1)
    wgmma_kernel(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap x_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  __shared__ __align__(8) std::uint64_t full[16], empty[16];
  constexpr int kGroups = kGroup == GroupSize::of32 ? 4 : kGroup == GroupSize::of64 ? 2 : 1;
  constexpr int kXBytes = kRows * 128;  // of 64 inputs
  constexpr int word_bytes = kGroups * 256, stage_bytes = stage_size(kBands, kRows);
  // From one lane, so that the compiler knows it to be the same in a warp.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpgroup, 0);

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) {
      init_barrier(shared_address(&full[s]), 1);
      init_barrier(shared_address(&empty[s]), kBands * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  let_next_kernel_start();

  if (warpgroup == kBands) {
    if constexpr (kBands == 4)
      asm volatile("setmaxnreg.dec.sync.aligned.u32 48;");
    else
      asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    if (threadIdx.x == kBands * kWarpgroup) {
      // The weight does not depend on what ran before, x does.
      bool waited = false;
      WorkOfRange work(p.split, p.split.range_of_block(static_cast<int>(blockIdx.x)));
      int stage = 0, parity = 1;
      while (work.next()) {
        const int band = work.tile / p.row_tiles * kBands, row = work.tile % p.row_tiles * kRows;
        const int bands = min(kBands, p.bands - band);
        const char* codes =
            p.codes + (static_cast<std::int64_t>(band) * p.steps + work.begin * kStageTiles) * 2048;
        for (int step = work.begin; step < work.end; ++step, codes += kBandStage) {
          const std::uint32_t barrier = shared_address(&full[stage]);
          const std::uint32_t at = shared_address(shared + stage * stage_bytes);
          wait(shared_address(&empty[stage]), parity);
          arrive_expecting(barrier, bands * (kBandStage + word_bytes) + 2 * kXBytes);
          const char* words = p.words + (static_cast<std::int64_t>(band) * p.groups +
                                         ((step * kStageInputs) >> p.group_shift)) *
                                            256;
#pragma unroll 1
          for (int b = 0; b < bands; ++b) {
            copy_bulk(at + 2 * kXBytes + b * kBandStage,
                      codes + static_cast<std::int64_t>(b) * p.steps * 2048, kBandStage, barrier);
            copy_bulk(at + 2 * kXBytes + kBands * kBandStage + b * 1024,
                      words + static_cast<std::int64_t>(b) * p.groups * 256, word_bytes, barrier);
          }
          if (!waited) wait_for_previous_kernel();
          waited = true;
          copy_box(at, &x_map, step * kStageInputs, row, barrier);
          copy_box(at + kXBytes, &x_map, step * kStageInputs + 64, row, barrier);
          if (++stage == p.stages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
    return;
  }

  if constexpr (kBands == 4)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
  else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const std::uint32_t code_offset = 2 * kXBytes + warpgroup * kBandStage + warp * 512 + lane * 16;
  const std::uint32_t word_offset =
      2 * kXBytes + kBands * kBandStage + warpgroup * 1024 + warp * 64 + (lane >> 2) * 8;

  const int range = p.split.range_of_block(static_cast<int>(blockIdx.x));
  WorkOfRange work(p.split, range);
  int stage = 0, parity = 0;
  while (work.next()) {
    float sums[kRows / 8][4] = {};
    // Steps of 16 inputs that are multiplied together. With few rows all of a stage, so that the
    // four warps meet as seldom as can be; other groups fill the time until the registers are free.
    constexpr int kBatch = kRows >= 128 ? 2 : kRows == 64 ? 4 : 8, kBuffers = kBatch == 8 ? 1 : 2;
    std::uint32_t a[kBuffers][kBatch][4];
    int before = -1;
#pragma unroll 1
    for (int step = work.begin; step < work.end; ++step) {
      wait(shared_address(&full[0]) + stage * 8, parity);
      const std::uint32_t at = shared_address(shared) + stage * stage_bytes;
      const std::uint64_t matrix = matrix_at(at);
      std::uint32_t zeros[2], scales[2], codes[4];
#pragma unroll
      for (int s = 0; s < 8; ++s) {
        if (kBuffers == 1 && s == 0 && before >= 0) {
          wgmma_wait<0>();
          if (lane == 0) arrive(shared_address(&empty[0]) + before * 8);
        }
        if (s % (8 / kGroups) == 0) {
          uint2 word;
          asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                       : "=r"(word.x), "=r"(word.y)
                       : "r"(at + word_offset + s / (8 / kGroups) * 256));
          zeros[0] = zero_pair<T>(word.x);
          zeros[1] = zero_pair<T>(word.y);
          scales[0] = scale_pair(word.x);
          scales[1] = scale_pair(word.y);
        }
        if (s % 4 == 0)
          asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(codes[0]), "=r"(codes[1]), "=r"(codes[2]), "=r"(codes[3])
                       : "r"(at + code_offset + s / 4 * 2048));
        std::uint32_t (&fragment)[4] = a[s / kBatch % kBuffers][s % kBatch];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          fragment[i] = bits_of(__hmul2(as_pair<T>(centred<T>(codes[s % 4], i, zeros[i & 1])),
                                        as_pair<T>(scales[i & 1])));
        if (s % kBatch != kBatch - 1) continue;
        wgmma_fence();
#pragma unroll
        for (int i = s - kBatch + 1; i <= s; ++i)
          wgmma<T, kRows>(sums, a[s / kBatch % kBuffers][i % kBatch],
                          matrix + ((i / 4 * kXBytes + i % 4 * 32) >> 4));
        wgmma_commit();
        if constexpr (kBuffers == 2) wgmma_wait<1>();
        if (kBuffers == 2 && s == kBatch - 1 && before >= 0 && lane == 0)
          arrive(shared_address(&empty[0]) + before * 8);
      }
      before = stage;
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wgmma_wait<0>();
    if (lane == 0) arrive(shared_address(&empty[0]) + before * 8);

    wait_for_previous_kernel();
    const auto partials_of = [&](int of) {
      return p.partials + (static_cast<std::int64_t>(of) * kBands + warpgroup) * (kRows / 8) * 128 +
             thread;
    };
    if (work.begin != 0) {
      float4* to = partials_of(range);
#pragma unroll
      for (int r = 0; r < kRows / 8; ++r)
        to[r * 128] = float4{sums[r][0], sums[r][1], sums[r][2], sums[r][3]};
      meet(warpgroup);
      if (thread == 0) set_flag(p.flags + range * kBands + warpgroup);
      continue;
    }
    const int others = work.end_of_parts();
    if (others > range + 1) {
      const int other_of_thread = range + 1 + thread;
      if (other_of_thread < others) wait_for(p.flags + other_of_thread * kBands + warpgroup);
      __syncwarp();
      meet(warpgroup);
      if (other_of_thread < others) p.flags[other_of_thread * kBands + warpgroup] = 0;
#pragma unroll(kRows <= 32 ? 4 : 1)
      for (int other = range + 1; other < others; ++other) {
        const float4* from = partials_of(other);
#pragma unroll
        for (int r = 0; r < kRows / 8; ++r) {
          const float4 more = __ldcg(from + r * 128);
          sums[r][0] += more.x;
          sums[r][1] += more.y;
          sums[r][2] += more.z;
          sums[r][3] += more.w;
        }
      }
    }
    const int output =
        (work.tile / p.row_tiles * kBands + warpgroup) * 64 + warp * 16 + (lane >> 2) * 2;
    const int row = work.tile % p.row_tiles * kRows + (lane & 3) * 2;
    const float2 bias =
        p.bias && output < p.n ? float2{p.bias[output], p.bias[output + 1]} : float2{0, 0};
    T* y = static_cast<T*>(p.y) + row * p.y_stride + output;
#pragma unroll
    for (int r = 0; r < kRows / 8; ++r) {
      if (output < p.n && row + r * 8 < p.m)
        *reinterpret_cast<std::uint32_t*>(y + r * 8 * p.y_stride) =
            pack<T>(sums[r][0] + bias.x, sums[r][2] + bias.y);
      if (output < p.n && row + r * 8 + 1 < p.m)
        *reinterpret_cast<std::uint32_t*>(y + (r * 8 + 1) * p.y_stride) =
            pack<T>(sums[r][1] + bias.x, sums[r][3] + bias.y);
    }
    __syncwarp();
  }
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, without linking the driver: the library must load where there is none.
Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                         cudaEnableDefault, &result) != cudaSuccess ||
        result != cudaDriverEntryPointSuccess)
      function = nullptr;
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

template <class T, int kBands, int kRows>
cudaError_t launch(const WgmmaPlan& plan, const Params& params, const CUtensorMap& map,
                   cudaStream_t stream) {
  const auto kernel = params.group_shift == 5   ? wgmma_kernel<T, kBands, kRows, GroupSize::of32>
                      : params.group_shift == 6 ? wgmma_kernel<T, kBands, kRows, GroupSize::of64>
                                                : wgmma_kernel<T, kBands, kRows, GroupSize::more>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  return launch_early(kernel, static_cast<unsigned>(plan.split.ranges), kWarpgroup * (kBands + 1),
                      plan.shared_bytes, true, stream, params, map);
}

template <class T>
cudaError_t launch(const WgmmaPlan& plan, const Params& params, const CUtensorMap& map,
                   cudaStream_t stream) {
  switch (plan.bands * 1000 + plan.rows) {
    case 4032:
      return launch<T, 4, 32>(plan, params, map, stream);
    case 2064:
      return launch<T, 2, 64>(plan, params, map, stream);
    case 2032:
      return launch<T, 2, 32>(plan, params, map, stream);
    case 2128:
      return launch<T, 2, 128>(plan, params, map, stream);
    case 2256:
      return launch<T, 2, 256>(plan, params, map, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                     int bands, int rows) {
  WgmmaPlan plan;
  plan.bands = bands;
  plan.rows = rows;
  plan.row_tiles = static_cast<int>((m + rows - 1) / rows);
  plan.split.steps = static_cast<int>(shape.steps) / kStageTiles;
  plan.split.tiles = static_cast<int>((shape.bands + bands - 1) / bands) * plan.row_tiles;
  // Whole tiles while that keeps nearly all processors busy; the rest is shared.
  const int tiles = plan.split.tiles, processors = limits.processors;
  const auto nearly = [&](int blocks) { return 10 * blocks >= 9 * processors; };
  if (tiles <= processors) {
    plan.split.ranges =
        nearly(tiles) ? tiles : std::max(1, std::min(processors, plan.split.units() / 2));
  } else {
    plan.split.ranges = processors;
    plan.split.waves = tiles / processors + nearly(tiles % processors);
  }
  const int bytes = stage_size(bands, rows);
  plan.stages = static_cast<int>(
      std::min<std::size_t>(16, (limits.shared_bytes - 2048) / static_cast<std::size_t>(bytes)));
  plan.shared_bytes = static_cast<std::size_t>(plan.stages) * static_cast<std::size_t>(bytes);
  return plan;
}

WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits) {
  // Four bands read x half as often; two make twice as many tiles of a small weight.
  if (m <= 32)
    return plan_wgmma(shape, m, limits, 5 * shape.bands / 4 >= limits.processors ? 4 : 2, 32);
  return plan_wgmma(shape, m, limits, 2, m <= 64 ? 64 : m <= 128 ? 128 : 256);
}

cudaError_t multiply_wgmma(const WgmmaPlan& plan, const ProductArgs& args, cudaStream_t stream) {
  const auto& shape = args.weight.shape;
  const Encode encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(shape.k), static_cast<cuuint64_t>(args.m)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(args.x_stride * 2)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(plan.rows)}, steps[2] = {1, 1};
  const CUresult made =
      encode(&map,
             args.weight.element == Element::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, const_cast<void*>(args.x), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (made != CUDA_SUCCESS) return cudaErrorInvalidValue;
  Params p;
  p.codes = static_cast<const char*>(args.weight.codes);
  p.words = reinterpret_cast<const char*>(args.weight.words);
  p.y = args.y;
  p.bias = args.bias;
  p.flags = static_cast<int*>(args.workspace);
  p.partials = reinterpret_cast<float4*>(static_cast<char*>(args.workspace) + 4096);
  p.y_stride = args.y_stride;
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(shape.n);
  p.bands = static_cast<int>(shape.bands);
  p.steps = static_cast<int>(shape.steps);
  p.groups = static_cast<int>(shape.groups);
  p.group_shift = shape.group_shift;
  p.stages = plan.stages;
  p.row_tiles = plan.row_tiles;
  p.split = plan.split;
  return args.weight.element == Element::f16 ? launch<__half>(plan, p, map, stream)
                                             : launch<__nv_bfloat16>(plan, p, map, stream);
}

}  // namespace graft::cuda
