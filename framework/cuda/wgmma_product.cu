#include <cuda.h>

#include <algorithm>

#include "cuda/wgmma_kernels.cuh"

namespace graft::cuda {
namespace {

using namespace wgmma_kernels;

/// Both halves the scale of a word.
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t word) {
  return __byte_perm(word, 0, 0x1010);
}

enum class GroupSize { of32, of64, more };

/// kBands groups of four warps, kRows rows of x.
template <class T, int kBands, int kRows, GroupSize kGroup>
__global__ void __launch_bounds__(kWarpgroup*(kBands + 1), 1)
    wgmma_kernel(const __grid_constant__ Params p, const __grid_constant__ Sources from) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  constexpr int kGroups = kGroup == GroupSize::of32 ? 4 : kGroup == GroupSize::of64 ? 2 : 1;
  using S = Stage<kBands, kRows>;
  const std::uint32_t ring = shared_address(shared);
  // From one lane, so that the compiler knows it to be the same in a warp.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpgroup, 0);

  if (threadIdx.x == 0) init_barriers<S>(ring, p.stages, kBands * 4, 1);
  __syncthreads();
  let_next_kernel_start();

  if (warpgroup == kBands) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
    if (threadIdx.x == kBands * kWarpgroup) fill<kBands, kRows, kGroups>(p, from, ring);
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const std::uint32_t code_offset = S::kCodes + warpgroup * 2048 + warp * 512 + lane * 16;
  const std::uint32_t word_offset =
      S::kWords + warpgroup * (kGroups * 256) + warp * 64 + (lane >> 2) * 8;

  const int range = p.split.range_of_block(static_cast<int>(blockIdx.x));
  WorkOfRange work(p.split, range);
  Place<S> place{ring};
  while (work.next()) {
    float sums[kRows / 8][4] = {};
    constexpr int kBatch = kRows >= 128 ? 2 : 4;  // steps of 16 inputs multiplied together
    std::uint32_t a[2][kBatch][4];
    std::uint32_t before = 0;
#pragma unroll 1
    for (int step = work.begin; step < work.end; ++step) {
      const std::uint32_t at = place.at, matrix = matrix_at(at);
      wait(at + S::kFull, place.parity);
      std::uint32_t zeros[2], scales[2], codes[4];
#pragma unroll
      for (int s = 0; s < 8; ++s) {
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
                       : "r"(at + code_offset + s / 4 * S::kHalfCodes));
        std::uint32_t (&fragment)[4] = a[s / kBatch % 2][s % kBatch];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          fragment[i] = bits_of(__hmul2(as_pair<T>(centred<T>(codes[s % 4], i, zeros[i & 1])),
                                        as_pair<T>(scales[i & 1])));
        if (s % kBatch != kBatch - 1) continue;
        wgmma_fence();
#pragma unroll
        for (int i = s - kBatch + 1; i <= s; ++i)
          wgmma<T, kRows>(sums, a[s / kBatch % 2][i % kBatch],
                          matrix + ((i / 4 * S::kX + i % 4 * 32) >> 4));
        wgmma_commit();
        wgmma_wait<1>();
        if (s == kBatch - 1 && before != 0 && lane == 0) arrive(before + S::kEmpty);
      }
      before = at;
      place.advance(ring, p.stages);
    }
    wgmma_wait<0>();
    if (lane == 0) arrive(before + S::kEmpty);

    finish<T, kBands, kRows>(p, work, range, warpgroup, sums);
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
cudaError_t launch(const WgmmaPlan& plan, const Params& params, const Sources& from,
                   cudaStream_t stream) {
  const auto kernel = params.group_shift == 5   ? wgmma_kernel<T, kBands, kRows, GroupSize::of32>
                      : params.group_shift == 6 ? wgmma_kernel<T, kBands, kRows, GroupSize::of64>
                                                : wgmma_kernel<T, kBands, kRows, GroupSize::more>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  return launch_early(kernel, static_cast<unsigned>(plan.split.ranges), kWarpgroup * (kBands + 1),
                      plan.shared_bytes, true, 1, stream, params, from);
}

template <class T>
cudaError_t launch(const WgmmaPlan& plan, const Params& params, const Sources& from,
                   cudaStream_t stream) {
  if (plan.rows <= kFewRows) return launch_few_rows<T>(plan, params, from, stream);
  switch (plan.bands * 1000 + plan.rows) {
    case 2064:
      return launch<T, 2, 64>(plan, params, from, stream);
    case 2128:
      return launch<T, 2, 128>(plan, params, from, stream);
    case 2256:
      return launch<T, 2, 256>(plan, params, from, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits,
                     int bands, int rows, int parts) {
  WgmmaPlan plan;
  plan.bands = bands;
  plan.rows = rows;
  plan.row_tiles = static_cast<int>((m + rows - 1) / rows);
  plan.split.steps = static_cast<int>(shape.steps) / kStageTiles;
  plan.split.tiles = static_cast<int>((shape.bands + bands - 1) / bands) * plan.row_tiles;
  // Whole tiles while that keeps nearly all processors busy; the rest is shared.
  const int tiles = plan.split.tiles, processors = limits.processors;
  const auto nearly = [&](int blocks) { return 10 * blocks >= 9 * processors; };
  if (parts > 0) {
    while (parts > plan.split.steps) parts /= 2;  // a block of a cluster has something to do
    plan.split.parts = parts;
    plan.split.ranges = tiles * parts;
  } else if (tiles <= processors) {
    plan.split.ranges =
        nearly(tiles) ? tiles : std::max(1, std::min(processors, plan.split.units() / 2));
  } else {
    plan.split.ranges = processors;
    plan.split.waves = tiles / processors + nearly(tiles % processors);
  }
  const int bytes = stage_bytes(bands, rows);
  plan.stages = static_cast<int>(limits.shared_bytes / static_cast<std::size_t>(bytes));
  plan.shared_bytes = static_cast<std::size_t>(plan.stages) * static_cast<std::size_t>(bytes);
  return plan;
}

WgmmaPlan plan_wgmma(const FragmentShape& shape, std::int64_t m, const DeviceLimits& limits) {
  if (m > kFewRows) return plan_wgmma(shape, m, limits, 2, m <= 64 ? 64 : m <= 128 ? 128 : 256, 0);
  WgmmaPlan best;
  double best_time = 0;
  for (const int bands : {4, 2})
    for (const int parts : {0, 2, 4, 8}) {
      const auto plan = plan_wgmma(shape, m, limits, bands, kFewRows, parts);
      // All blocks of a cluster run at once, and large clusters do not fill a device.
      if (plan.split.ranges > (parts > 2 ? limits.processors / 2 : limits.processors)) continue;
      // Microseconds as measured on an H200: a stage, and what comes before and after all stages.
      const int most = plan.split.waves * plan.split.steps +
                       (plan.split.units() + plan.split.ranges - 1) / plan.split.ranges;
      const bool meets = parts == 0 && plan.split.ranges != plan.split.tiles;
      const double time =
          bands == 4 ? 0.68 * most + (meets ? 8.9 : 4.6) : 0.45 * most + (meets ? 5.6 : 3.5);
      if (best.split.tiles == 0 || time < best_time) {
        best = plan;
        best_time = time;
      }
    }
  return best;
}

cudaError_t multiply_wgmma(const WgmmaPlan& plan, const ProductArgs& args, cudaStream_t stream) {
  const auto& shape = args.weight.shape;
  const Encode encode = encoder();
  if (!encode) return cudaErrorNotSupported;
  // Innermost sizes first.
  const auto rows_of = [&](CUtensorMap& map, CUtensorMapDataType type, const void* data,
                           std::int64_t columns, std::int64_t rows, std::int64_t row_bytes,
                           int box_columns, int box_rows, CUtensorMapSwizzle swizzle) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_bytes)};
    const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                               static_cast<cuuint32_t>(box_rows)},
                     steps[2] = {1, 1};
    return encode(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
  };
  const auto type = args.weight.element == Element::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const int groups_of_stage = std::max(1, kStageInputs >> std::min(shape.group_shift, 30));
  Sources from;
  if (!rows_of(from.x, type, args.x, shape.k, args.m, args.x_stride * 2, 64, plan.rows,
               CU_TENSOR_MAP_SWIZZLE_128B) ||
      !rows_of(from.codes, CU_TENSOR_MAP_DATA_TYPE_INT64, args.weight.codes, shape.steps * kCodeBox,
               shape.bands, shape.steps * kCodeBox * 8, kCodeBox, plan.bands,
               CU_TENSOR_MAP_SWIZZLE_NONE) ||
      !rows_of(from.words, CU_TENSOR_MAP_DATA_TYPE_INT32, args.weight.words, shape.groups * 64,
               shape.bands, shape.groups * 256, groups_of_stage * 64, plan.bands,
               CU_TENSOR_MAP_SWIZZLE_NONE))
    return cudaErrorInvalidValue;
  Params p;
  p.y = args.y;
  p.bias = args.bias;
  p.flags = static_cast<int*>(args.workspace);
  p.partials = reinterpret_cast<float4*>(static_cast<char*>(args.workspace) + 4096);
  p.y_stride = args.y_stride;
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(shape.n);
  p.group_shift = shape.group_shift;
  p.stages = plan.stages;
  p.row_tiles = plan.row_tiles;
  p.split = plan.split;
  return args.weight.element == Element::f16 ? launch<__half>(plan, p, from, stream)
                                             : launch<__nv_bfloat16>(plan, p, from, stream);
}

}  // namespace graft::cuda
