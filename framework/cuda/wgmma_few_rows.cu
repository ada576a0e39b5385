#include "cuda/wgmma_kernels.cuh"

namespace graft::cuda::wgmma_kernels {
namespace {

constexpr int kRows = kFewRows;  // of x at a time

/// Four warps for each band, then three that add up x in turn, then one that brings weight and x.
constexpr int kSumWarps = 3, kSumLanes = 4;  // lanes of a warp that have its sums
constexpr int threads_of(int bands) { return kWarpgroup * (bands + 1); }

/// What the warps do that add up the inputs of each group for each row of x: zero points are taken
/// off with them. `turn`: the warp's, below kSumWarps.
template <class T, int kBands, int kGroups>
__device__ __forceinline__ void add_x(const Params& p, std::uint32_t ring, int turn) {
  using S = Stage<kBands, kRows>;
  constexpr int kTiles = kRows / 8;
  const int lane = threadIdx.x % 32, chunk = lane >> 3, row = lane & 7;
  const std::uint32_t ones[4] = {Pair<T>::kOnes, Pair<T>::kOnes, Pair<T>::kOnes, Pair<T>::kOnes};
  WorkOfRange work(p.split, p.split.range_of_block(static_cast<int>(blockIdx.x)));
  Place<S> place{ring};
  while (work.next())
    for (int step = work.begin; step < work.end; ++step, place.advance(ring, p.stages)) {
      const std::uint32_t at = place.at;
      // Also a stage of another warp, so that none falls a round of the ring behind: the parity of
      // its barriers would say nothing then.
      wait(at + S::kFull, place.parity);
      if (turn-- != 0) {
        if (lane == 0) arrive(at + S::kEmpty);
        continue;
      }
      turn = kSumWarps - 1;
      constexpr int kPieces = 4 / kGroups;  // of 32 inputs, in a group
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        float sums[kTiles][4] = {};
#pragma unroll
        for (int piece = group * kPieces; piece < (group + 1) * kPieces; ++piece)
#pragma unroll
          for (int r = 0; r < kTiles; ++r) {
            std::uint32_t b[4];
            load_matrices(b, at + piece / 2 * S::kX + (r * 8 + row) * 128 +
                                 (((piece % 2 * 4 + chunk) ^ row) << 4));
            mma<T>(sums[r], ones, b[0], b[1]);
            mma<T>(sums[r], ones, b[2], b[3]);
          }
        if (lane < kSumLanes)
#pragma unroll
          for (int r = 0; r < kTiles; ++r)
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                             at + S::kSums + (group * kTiles + r) * 32 + lane * 8),
                         "f"(sums[r][0]), "f"(sums[r][1])
                         : "memory");
      }
      if (lane < kSumLanes) arrive(at + S::kSummed);
      __syncwarp();
      if (lane == 0) arrive(at + S::kEmpty);
    }
}

/// All threads of the blocks that share a tile; what they wrote to shared memory before is there.
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/// finish() where the blocks that share a tile are a cluster: each adds up what all of them have of
/// its part of the results, from their shared memory, in the order of their inputs.
template <class T, int kBands>
__device__ __forceinline__ void finish_together(const Params& p, const WorkOfRange& work, int range,
                                                std::uint32_t ring, int warpgroup,
                                                const float (&sums)[kRows / 8][4]) {
  constexpr int kTiles = kRows / 8, kPieces = kBands * kTiles;
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
  const int parts = p.split.parts, part = range % parts;
  const std::uint32_t place = ring + static_cast<std::uint32_t>(thread * 16);
  // The ring is free once all groups of warps are done with it.
  asm volatile("bar.sync 15, %0;" ::"n"(kBands * kWarpgroup) : "memory");
#pragma unroll
  for (int r = 0; r < kTiles; ++r)
    asm volatile(
        "st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(place + (warpgroup * kTiles + r) * 2048),
        "f"(sums[r][0]), "f"(sums[r][1]), "f"(sums[r][2]), "f"(sums[r][3])
        : "memory");
  meet_cluster();
  wait_for_previous_kernel();
  for (int piece = kPieces * part / parts + warpgroup; piece < kPieces * (part + 1) / parts;
       piece += kBands) {
    float4 sum{};
    for (int other = 0; other < parts; ++other) {
      std::uint32_t from;
      float4 more;
      // Ranges count down as blocks count up.
      asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                   : "=r"(from)
                   : "r"(place + piece * 2048), "r"(parts - 1 - other));
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(more.x), "=f"(more.y), "=f"(more.z), "=f"(more.w)
                   : "r"(from)
                   : "memory");
      sum.x += more.x;
      sum.y += more.y;
      sum.z += more.z;
      sum.w += more.w;
    }
    const int output =
        (work.tile / p.row_tiles * kBands + piece / kTiles) * 64 + warp * 16 + (lane >> 2) * 2;
    const int row = work.tile % p.row_tiles * kRows + piece % kTiles * 8 + (lane & 3) * 2;
    if (output < p.n)
      write_results(p, static_cast<T*>(p.y) + row * p.y_stride + output, row, bias_of(p, output),
                    sum);
  }
  // Nobody's shared memory goes before all have read it.
  meet_cluster();
}

/// kBands bands of 64 outputs; kGroups groups of inputs in a stage. Codes are multiplied as they
/// are, plus a magic number; scales and zero points come to the sums of a group of inputs, where
/// they cost least.
template <class T, int kBands, int kGroups>
__global__ void __launch_bounds__(threads_of(kBands), 1)
    few_rows_kernel(const __grid_constant__ Params p, const __grid_constant__ Sources from) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char shared[];
  using S = Stage<kBands, kRows>;
  const std::uint32_t ring = kept(shared_address(shared));
  // From one lane, so that the compiler knows it to be the same in a warp.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / kWarpgroup, 0);

  if (threadIdx.x == 0) init_barriers<S>(ring, p.stages, kBands * 4 + kSumWarps, kSumLanes);
  __syncthreads();
  let_next_kernel_start();

  const int lane = threadIdx.x % 32;
  int warp = __shfl_sync(0xFFFFFFFF, threadIdx.x / 32, 0);
  if (warpgroup == kBands) {
    warp -= kBands * 4;
    if (warp < kSumWarps)
      add_x<T, kBands, kGroups>(p, ring, warp);
    else if (lane == 0)
      fill<kBands, kRows, kGroups>(p, from, ring);
    if (p.split.parts > 0) {
      meet_cluster();
      meet_cluster();
    }
    return;
  }

  warp %= 4;
  const std::uint32_t code_offset =
      kept(S::kCodes + warpgroup * 2048 + warp * 512 + static_cast<std::uint32_t>(lane * 16));
  const std::uint32_t word_offset = kept(S::kWords + warpgroup * (kGroups * 256) + warp * 64 +
                                         static_cast<std::uint32_t>(lane >> 2) * 8);
  const std::uint32_t sum_offset = S::kSums + static_cast<std::uint32_t>(lane & 3) * 8;

  constexpr int kSteps = 8 / kGroups;  // of 16 inputs, in a group
  const int range = p.split.range_of_block(static_cast<int>(blockIdx.x));
  WorkOfRange work(p.split, range);
  Place<S> place{ring};
  while (work.next()) {
    float total[kRows / 8][4] = {};
#pragma unroll 1
    for (int step = work.begin; step < work.end; ++step) {
      const std::uint32_t at = place.at;
      // From one lane, so that the compiler knows it to be the same in a warp.
      const std::uint32_t matrix = matrix_at(__shfl_sync(0xFFFFFFFF, at, 0));
      wait(at + S::kFull, place.parity);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        std::uint32_t a[kSteps][4], codes[4];
        float part[kRows / 8][4];
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int i = group * kSteps + s;
          if (i % 4 == 0 || s == 0)
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(codes[0]), "=r"(codes[1]), "=r"(codes[2]), "=r"(codes[3])
                         : "r"(at + code_offset + i / 4 * S::kHalfCodes));
#pragma unroll
          for (int reg = 0; reg < 4; ++reg) a[s][reg] = with_magic<T>(codes[i % 4], reg);
        }
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int i = group * kSteps + s;
          const std::uint32_t x = matrix + ((i / 4 * S::kX + i % 4 * 32) >> 4);
          if (s == 0)
            wgmma<T, kRows, false>(part, a[s], x);
          else
            wgmma<T, kRows>(part, a[s], x);
        }
        wgmma_commit();
        if (group == 0) wait(at + S::kSummed, place.parity);
        // Loaded while it multiplies.
        uint2 word;
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(word.x), "=r"(word.y)
                     : "r"(at + word_offset + group * 256));
        float x_sums[kRows / 8][2];
#pragma unroll
        for (int r = 0; r < kRows / 8; ++r)
          asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                       : "=f"(x_sums[r][0]), "=f"(x_sums[r][1])
                       : "r"(at + sum_offset + (group * kRows + r * 8) * 4));
        wgmma_wait<0>();
        const float scales[2] = {scale_of<T>(word.x), scale_of<T>(word.y)};
        const float zeros[2] = {magic_zero<T>(word.x), magic_zero<T>(word.y)};
#pragma unroll
        for (int r = 0; r < kRows / 8; ++r)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            total[r][i] += scales[i / 2] * (part[r][i] - zeros[i / 2] * x_sums[r][i % 2]);
      }
      __syncwarp();
      if (lane == 0) arrive(at + S::kEmpty);
      place.advance(ring, p.stages);
    }
    if (p.split.parts > 0)
      finish_together<T, kBands>(p, work, range, ring, warpgroup, total);
    else
      finish<T, kBands, kRows>(p, work, range, warpgroup, total);
  }
#endif
}

template <class T, int kBands>
cudaError_t launch(const WgmmaPlan& plan, const Params& params, const Sources& from,
                   cudaStream_t stream) {
  const auto kernel = params.group_shift == 5   ? few_rows_kernel<T, kBands, 4>
                      : params.group_shift == 6 ? few_rows_kernel<T, kBands, 2>
                                                : few_rows_kernel<T, kBands, 1>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  return launch_early(kernel, static_cast<unsigned>(plan.split.ranges), threads_of(kBands),
                      plan.shared_bytes, true, plan.split.parts, stream, params, from);
}

}  // namespace

template <class T>
cudaError_t launch_few_rows(const WgmmaPlan& plan, const Params& params, const Sources& from,
                            cudaStream_t stream) {
  if (plan.rows != kFewRows) return cudaErrorInvalidValue;
  if (plan.bands == 4) return launch<T, 4>(plan, params, from, stream);
  if (plan.bands == 2) return launch<T, 2>(plan, params, from, stream);
  return cudaErrorInvalidValue;
}

template cudaError_t launch_few_rows<__half>(const WgmmaPlan&, const Params&, const Sources&,
                                             cudaStream_t);
template cudaError_t launch_few_rows<__nv_bfloat16>(const WgmmaPlan&, const Params&, const Sources&,
                                                    cudaStream_t);

}  // namespace graft::cuda::wgmma_kernels
