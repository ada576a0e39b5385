#pragma once

#include <cuda.h>

#include "cuda/device_math.cuh"
#include "cuda/flags.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/shared_memory.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/wgmma_product.h"

// What the two kinds of wgmma kernel share: their arguments, and how one warp has the copy engine
// fill a ring in shared memory while groups of four warps empty it.

namespace graft::cuda::wgmma_kernels {

constexpr int kStageInputs = 128;
constexpr int kStageTiles = 2;  // of 64 inputs
constexpr int kCodeBox = 256;   // of 8 bytes: a band's codes for 64 inputs
constexpr int kWarpgroup = 128;

/// Bytes of a stage of the ring.
constexpr int stage_bytes(int bands, int rows) { return rows * 256 + bands * 5120 + 1024; }

/// Where the parts of a stage of the ring are, in bytes: x in two halves of 64 inputs, swizzled by
/// rows of 128 bytes; codes of each band for one half, then for the other; words of each band; what
/// the kernel for few rows adds up; and the barriers.
template <int kBands, int kRows>
struct Stage {
  static constexpr int kX = kRows * 128;  ///< of 64 inputs
  static constexpr int kCodes = 2 * kX, kHalfCodes = kBands * 2048;
  static constexpr int kWords = kCodes + 2 * kHalfCodes;
  static constexpr int kSums = kWords + kBands * 1024;
  static constexpr int kFull = kSums + 512, kEmpty = kFull + 8, kSummed = kEmpty + 8;
  static constexpr int kBytes = kSums + 1024;
  static_assert(kBytes == stage_bytes(kBands, kRows) && kBytes % 1024 == 0);
};

/// What the copy engine reads: x as [m][k], codes and words as [bands][bytes of a band].
struct Sources {
  CUtensorMap x, codes, words;
};

struct Params {
  void* y;
  const float* bias;
  float4* partials;
  int* flags;
  std::int64_t y_stride;
  int m, n, group_shift, stages, row_tiles;
  WorkSplit split;
};

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

__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, int column,
                                         int row, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/// The same number, where the compiler cannot think of computing it again.
__device__ __forceinline__ std::uint32_t kept(std::uint32_t number) {
  std::uint32_t out;
  asm volatile("mov.b32 %0, %1;" : "=r"(out) : "r"(number));
  return out;
}

/// A place in the ring and the parity of the barriers there.
template <class S>
struct Place {
  std::uint32_t at;
  int parity = 0;

  __device__ __forceinline__ void advance(std::uint32_t ring, int stages) {
    at += S::kBytes;
    if (at == ring + stages * S::kBytes) {
      at = ring;
      parity ^= 1;
    }
  }
};

template <class S>
__device__ __forceinline__ void init_barriers(std::uint32_t ring, int stages, int emptying,
                                              int summing) {
  for (int s = 0; s < stages; ++s, ring += S::kBytes) {
    init_barrier(ring + S::kFull, 1);
    init_barrier(ring + S::kEmpty, emptying);
    init_barrier(ring + S::kSummed, summing);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// What the warp does that brings weight and x; one thread of it. kGroups: of inputs, a stage.
template <int kBands, int kRows, int kGroups>
__device__ __forceinline__ void fill(const Params& p, const Sources& from, std::uint32_t ring) {
  using S = Stage<kBands, kRows>;
  // The weight does not depend on what ran before, x does.
  bool waited = false;
  WorkOfRange work(p.split, p.split.range_of_block(static_cast<int>(blockIdx.x)));
  Place<S> place{ring, 1};
  while (work.next()) {
    const int band = work.tile / p.row_tiles * kBands, row = work.tile % p.row_tiles * kRows;
    for (int step = work.begin; step < work.end; ++step, place.advance(ring, p.stages)) {
      const std::uint32_t at = place.at, full = at + S::kFull;
      wait(at + S::kEmpty, place.parity);
      arrive_expecting(full, 2 * (S::kX + S::kHalfCodes) + kBands * kGroups * 256);
      const int unit = step * kStageTiles;  // of 2048 bytes a band
      copy_box(at + S::kCodes, &from.codes, unit * kCodeBox, band, full);
      copy_box(at + S::kCodes + S::kHalfCodes, &from.codes, (unit + 1) * kCodeBox, band, full);
      copy_box(at + S::kWords, &from.words, ((step * kStageInputs) >> p.group_shift) * 64, band,
               full);
      if (!waited) wait_for_previous_kernel();
      waited = true;
      copy_box(at, &from.x, step * kStageInputs, row, full);
      copy_box(at + S::kX, &from.x, step * kStageInputs + 64, row, full);
    }
  }
}

__device__ __forceinline__ void meet(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
}

/// Bias of a lane's two outputs.
__device__ __forceinline__ float2 bias_of(const Params& p, int output) {
  return p.bias ? float2{p.bias[output], p.bias[output + 1]} : float2{0, 0};
}
/// Writes sums of a lane's two outputs for rows `row` and `row + 1`, as far as there are such rows;
/// y: where the first one goes.
template <class T>
__device__ __forceinline__ void write_results(const Params& p, T* y, int row, float2 bias,
                                              float4 sums) {
  if (row < p.m) *reinterpret_cast<std::uint32_t*>(y) = pack<T>(sums.x + bias.x, sums.z + bias.y);
  if (row + 1 < p.m)
    *reinterpret_cast<std::uint32_t*>(y + p.y_stride) = pack<T>(sums.y + bias.x, sums.w + bias.y);
}

/// What a group of four warps does with its sums over the inputs that it had: keeps them for the
/// range that finishes the tile, or finishes it.
template <class T, int kBands, int kRows>
__device__ __forceinline__ void finish(const Params& p, const WorkOfRange& work, int range,
                                       int warpgroup, float (&sums)[kRows / 8][4]) {
  const int thread = threadIdx.x % kWarpgroup, warp = thread / 32, lane = thread % 32;
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
    return;
  }
  const int others = work.end_of_parts();
  if (others > range + 1) {
    const int other_of_thread = range + 1 + thread;
    if (other_of_thread < others) wait_for(p.flags + other_of_thread * kBands + warpgroup);
    __syncwarp();
    meet(warpgroup);
    if (other_of_thread < others) p.flags[other_of_thread * kBands + warpgroup] = 0;
#pragma unroll(kRows > kFewRows ? 1 : 2)
    for (int other = range + 1; other < others; ++other) {
      const float4* from = partials_of(other);
      constexpr int kAtOnce = kRows > kFewRows ? 8 : 1;  // loads under way
#pragma unroll
      for (int first = 0; first < kRows / 8; first += kAtOnce) {
        float4 more[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) more[i] = __ldcg(from + (first + i) * 128);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          sums[first + i][0] += more[i].x;
          sums[first + i][1] += more[i].y;
          sums[first + i][2] += more[i].z;
          sums[first + i][3] += more[i].w;
        }
      }
    }
  }
  const int output =
      (work.tile / p.row_tiles * kBands + warpgroup) * 64 + warp * 16 + (lane >> 2) * 2;
  const int row = work.tile % p.row_tiles * kRows + (lane & 3) * 2;
  if (output < p.n) {
    const float2 bias = bias_of(p, output);
    T* y = static_cast<T*>(p.y) + row * p.y_stride + output;
#pragma unroll
    for (int r = 0; r < kRows / 8; ++r)
      write_results(p, y + r * 8 * p.y_stride, row + r * 8, bias,
                    float4{sums[r][0], sums[r][1], sums[r][2], sums[r][3]});
  }
  __syncwarp();
}

/// For up to kFewRows rows.
template <class T>
cudaError_t launch_few_rows(const WgmmaPlan& plan, const Params& params, const Sources& from,
                            cudaStream_t stream);

}  // namespace graft::cuda::wgmma_kernels
