#include <type_traits>

#include "cuda/device_math.cuh"
#include "cuda/flags.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/shared_memory.cuh"
#include "cuda/stream_product.h"

namespace graft::cuda {
namespace {

struct Params {
  const uint4* codes;
  const std::uint32_t* words;
  const float* table;
  const char* x;
  void* y;
  const float* bias;
  float2* partials;
  int* flags;
  std::int64_t x_stride, y_stride;  // bytes, elements
  int m, n, k, bands, steps, groups, group_shift;
  WorkSplit split;
};

/// Rows of x and y that one weight multiplies.
struct Segment {
  const uint4* codes;
  const std::uint32_t* words;
  const float* bias;
  int first, m;
};
/// Of several weights of one shape; their tiles are numbered through.
struct GroupedParams : Params {
  int tiles;  ///< of a segment
  Segment segments[kMostSegments];
};
static_assert(sizeof(GroupedParams) <= 4096, "every device takes such parameters");

/// Whose `tile` is; it becomes the number of the tile there. One weight is its own segment.
__device__ __forceinline__ const Params& segment_of(const Params& p, int& /*tile*/) { return p; }
__device__ __forceinline__ const Segment& segment_of(const GroupedParams& p, int& tile) {
  const int segment = tile / p.tiles;
  tile -= segment * p.tiles;
  return p.segments[segment];
}

/// kHigh tiles of 16 outputs, kRows tiles of 8 rows of x; the warps of a block take its steps of 64
/// inputs in turn. kFine: groups of 32 inputs. Of one weight, or of several.
template <class T, CodeKind kKind, int kHigh, int kRows, bool kFine, class ParamsOf>
__global__ void __launch_bounds__(most_warps(kRows, kFine) * 32, 1)
    stream_kernel(const __grid_constant__ ParamsOf p) {
  constexpr bool kGrouped = std::is_same_v<ParamsOf, GroupedParams>;
  constexpr int kCodes = codes_of(kHigh), kBeforeX = kCodes + words_of(kHigh, kFine);
  constexpr int kStage = stage_of(kHigh, kRows, kFine);
  constexpr bool kTable = kKind == CodeKind::table4;
  constexpr int kStages = stages_of(kRows), kMeetings = meetings_of(kRows);
  GRAFT_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  char* const rings = shared + (kTable ? kTableBytes : 0);
  char* const ring = rings + warp * (kStages * kStage);
  auto* sums = reinterpret_cast<float2*>(rings + warps * (kStages * kStage));
  const int of_meeting = kHigh * 2 * 32 * warps;
  int meeting = 0;
  const std::uint32_t ring_address = shared_address(ring) + static_cast<std::uint32_t>(lane * 16);
  const std::uint32_t x_address = shared_address(ring) + kBeforeX;
  const int group_steps_shift = p.group_shift - 6;  // of groups of 64 inputs and more
  const std::uint64_t policy = evict_first();
  const int range = p.split.range_of_block(static_cast<int>(blockIdx.x));
  const int x_rows = kGrouped ? 0 : min(p.m, 8 * kRows);  // that all tiles have
  let_next_kernel_start();

  // What this warp fetches: every `warps`-th step of each tile's part of the range.
  const int last = p.split.begin(range + 1);
  int tile_ahead, at_ahead, end_ahead, next_ahead;
  const uint4* codes_ahead;
  const std::uint32_t* words_ahead;
  constexpr int kSet = kHigh * 4, kWordChunks = kSet * (kFine ? 2 : 1);
  [[maybe_unused]] int first_row_ahead = 0, x_rows_ahead = 0;  // where a tile says
  const auto point_at_tile = [&] {
    int tile = tile_ahead;
    const auto& segment = segment_of(p, tile);
    tile *= kHigh;  // of 16 outputs
    const int band = tile / 4, first = tile % 4;
    codes_ahead = segment.codes +
                  ((static_cast<std::int64_t>(band) * p.steps + at_ahead) * 4 + first) * 32 + lane;
    words_ahead = segment.words + static_cast<std::int64_t>(band) * p.groups * 64 + first * 16 +
                  lane % kSet * 4 + (kFine ? lane / kSet * 64 : 0);
    if constexpr (kGrouped) {
      first_row_ahead = segment.first;
      x_rows_ahead = segment.m;
    }
  };
  const auto settle = [&] {
    if (at_ahead < end_ahead) return;
    while (at_ahead >= end_ahead && next_ahead < last) {
      ++tile_ahead;
      at_ahead = warp;
      end_ahead = min(p.split.steps, last - next_ahead);
      next_ahead += end_ahead;
    }
    point_at_tile();
  };
  const auto advance = [&] {
    at_ahead += warps;
    codes_ahead += warps * 128;
    settle();
  };
  const auto fetch_weight = [&](int stage) {
    const std::uint32_t to = ring_address + static_cast<std::uint32_t>(stage * kStage);
#pragma unroll
    for (int i = 0; i < kHigh; ++i)
      copy_once(to + static_cast<std::uint32_t>(i * 512), codes_ahead + i * 32, policy);
    if (lane < kWordChunks)
      copy(to + static_cast<std::uint32_t>(kCodes),
           words_ahead + (kFine ? at_ahead * 128 : (at_ahead >> group_steps_shift) * 64), 16);
  };
  const int x_lane = lane / 8;
  const char* const x_of_lane = p.x + x_lane * p.x_stride + lane % 8 * 16;
  // Of rows 4 apart: the second one's pieces change places with those of the other half.
  const std::uint32_t x_piece = static_cast<std::uint32_t>((lane % 8 ^ (x_lane & 7)) << 4);
  const std::uint32_t x_even = x_address + static_cast<std::uint32_t>(x_lane * 128) + x_piece;
  const std::uint32_t x_odd = x_address + static_cast<std::uint32_t>(x_lane * 128) + (x_piece ^ 64);
  const auto fetch_x = [&](int stage) {
    const auto stage_at = static_cast<std::uint32_t>(stage * kStage);
    const int bytes = at_ahead * 64 + lane % 8 * 8 < p.k ? 16 : 0;
    const char* from = x_of_lane + at_ahead * 128;
    if constexpr (kGrouped) from += first_row_ahead * p.x_stride;
    const int rows = kGrouped ? x_rows_ahead : x_rows;
#pragma unroll
    for (int i = 0; i < kRows * 2; ++i)  // of four rows
      if (x_lane + i * 4 < rows)
        copy((i % 2 == 1 ? x_odd : x_even) + stage_at + i * 512, from + i * 4 * p.x_stride, bytes);
  };

  // The weight does not depend on what ran before: its first pieces are asked for at once.
  const auto start = [&] {
    const int begin = p.split.begin(range);
    tile_ahead = begin / p.split.steps;
    const int k = begin - tile_ahead * p.split.steps;
    end_ahead = min(p.split.steps, k + last - begin);
    next_ahead = begin + end_ahead - k;
    at_ahead = k + warp;
    if (at_ahead < end_ahead)
      point_at_tile();
    else
      settle();
  };
  start();
  for (int stage = 0; stage < kStages - 1 && at_ahead < end_ahead; ++stage, advance())
    fetch_weight(stage);
  start();
  // Rows of x that not all tiles have are zero in every stage, once for all. Where a segment has
  // fewer than the one before, that one's stay: what comes of a row reaches no other.
  for (int stage = 0; stage < kStages; ++stage)
    for (int i = x_rows * 8 + lane; i < kRows * 64; i += 32)
      *reinterpret_cast<uint4*>(ring + stage * kStage + kBeforeX + i * 16) = uint4{0, 0, 0, 0};
  if constexpr (kGrouped) __syncwarp();
  if constexpr (kTable) {
    for (int i = threadIdx.x; i < kTableBytes / 16; i += blockDim.x) {
      const std::uint32_t pair = pack<T>(p.table[i / 8 % 16], p.table[i / 8 / 16]);
      reinterpret_cast<uint4*>(shared)[i] = uint4{pair, pair, pair, pair};
    }
    __syncthreads();
  }
  wait_for_previous_kernel();
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (at_ahead < end_ahead) {
      fetch_x(stage);
      advance();
    }
    commit_copies();
  }
  const std::uint32_t table = shared_address(shared) + static_cast<std::uint32_t>(lane * 4);

  int stage = 0, free_stage = kStages - 1;
  const int x_chunk = lane >> 3, x_row = lane & 7;
  int unit = p.split.begin(range);
  while (unit < last) {
    const int tile = unit / p.split.steps, begin = unit - tile * p.split.steps;
    const int end = min(p.split.steps, begin + last - unit);
    unit += end - begin;
    float total[kHigh][kRows][4] = {};
    for (int step = begin + warp; step < end; step += warps) {
      wait_for_copies<kStages - 2>();
      __syncwarp();
      if (at_ahead < end_ahead) {
        fetch_weight(free_stage);
        fetch_x(free_stage);
        advance();
      }
      commit_copies();
      const char* at = ring + stage * kStage;
      const std::uint32_t x_at =
          x_address + static_cast<std::uint32_t>(stage * kStage + x_row * 128);
      float x_sums[kRows][kFine ? 2 : 1][4] = {};  // over the inputs of a group
      std::uint32_t b[kRows][2][4];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          load_matrices(b[r][half], x_at + static_cast<std::uint32_t>(
                                               r * 1024 + (((half * 4 + x_chunk) ^ x_row) << 4)));
      if constexpr (!kTable) {
        const std::uint32_t ones[4] = {Pair<T>::kOnes, Pair<T>::kOnes, Pair<T>::kOnes,
                                       Pair<T>::kOnes};
#pragma unroll
        for (int s = 0; s < 4; ++s)
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            mma<T>(x_sums[r][kFine ? s / 2 : 0], ones, b[r][s / 2][s % 2 * 2],
                   b[r][s / 2][s % 2 * 2 + 1]);
      }
      // Tiles that are worked on in turn, so that a product need not wait for the one before it.
      constexpr int kTogether = kHigh < 2 ? 1 : 2;
#pragma unroll
      for (int h0 = 0; h0 < kHigh; h0 += kTogether) {
        std::uint32_t codes[kTogether][4];
        uint2 word[kTogether];
        float part[kTogether][kRows][4];
#pragma unroll
        for (int h = 0; h < kTogether; ++h) {
          const uint4 packed = *reinterpret_cast<const uint4*>(at + ((h0 + h) * 32 + lane) * 16);
          codes[h][0] = packed.x;
          codes[h][1] = packed.y;
          codes[h][2] = packed.z;
          codes[h][3] = packed.w;
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
#pragma unroll
          for (int h = 0; h < kTogether; ++h) {
            if (s == 0 || (kFine && s == 2)) {
              word[h] = *reinterpret_cast<const uint2*>(at + kCodes + (s / 2) * (kHigh * 64) +
                                                        (h0 + h) * 64 + (lane >> 2) * 8);
#pragma unroll
              for (int r = 0; r < kRows; ++r)
                part[h][r][0] = part[h][r][1] = part[h][r][2] = part[h][r][3] = 0;
            }
            std::uint32_t a[4];
            if constexpr (kTable) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const std::uint32_t moved = i == 0 ? codes[h][s] << 7 : codes[h][s] >> (8 * i - 7);
                a[i] = load_shared((moved & 0x7F80) + table);
              }
            } else {
#pragma unroll
              for (int i = 0; i < 4; ++i) a[i] = with_magic<T>(codes[h][s], i);
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r)
              mma<T>(part[h][r], a, b[r][s / 2][s % 2 * 2], b[r][s / 2][s % 2 * 2 + 1]);
          }
          if (s == 3 || (kFine && s == 1)) {
            // Magic numbers and zero points come off the sums, where they cost least.
#pragma unroll
            for (int h = 0; h < kTogether; ++h) {
              const float scales[2] = {
                  kTable ? __uint_as_float(word[h].x) : scale_of<T>(word[h].x),
                  kTable ? __uint_as_float(word[h].y) : scale_of<T>(word[h].y)};
              const float zeros[2] = {kTable ? 0 : magic_zero<T>(word[h].x),
                                      kTable ? 0 : magic_zero<T>(word[h].y)};
#pragma unroll
              for (int r = 0; r < kRows; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  const float sum =
                      kTable ? part[h][r][i]
                             : part[h][r][i] - zeros[i / 2] * x_sums[r][kFine ? s / 2 : 0][i % 2];
                  total[h0 + h][r][i] += scales[i / 2] * sum;
                }
            }
          }
        }
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
      free_stage = free_stage == kStages - 1 ? 0 : free_stage + 1;
    }

    // The warps' sums meet here; a pair of outputs of one row of x at a time.
    const bool finishes = begin == 0;
    int others = range + 1;
    if (finishes && end != p.split.steps) {
      const int tile_end = (tile + 1) * p.split.steps;
      while (p.split.begin(others) < tile_end) ++others;
      for (int other = range + 1 + static_cast<int>(threadIdx.x); other < others;
           other += static_cast<int>(blockDim.x))
        wait_for(p.flags + other);
    }
    constexpr int kPairs = kHigh * 2;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair)
        sums[(pair * warps + warp) * 32 + lane] =
            float2{total[pair / 2][r][pair % 2], total[pair / 2][r][pair % 2 + 2]};
      __syncthreads();
      for (int pair = warp; pair < kPairs; pair += warps) {
        float2 sum = sums[pair * warps * 32 + lane];
        for (int w = 1; w < warps; ++w) {
          const float2 more = sums[(pair * warps + w) * 32 + lane];
          sum.x += more.x;
          sum.y += more.y;
        }
        constexpr int kOfRange = kRows * kPairs * 32;
        const int place = (r * kPairs + pair) * 32 + lane;
        if (!finishes) {
          p.partials[static_cast<std::int64_t>(range) * kOfRange + place] = sum;
          continue;
        }
#pragma unroll 4
        for (int other = range + 1; other < others; ++other) {
          const float2 more =
              __ldcg(p.partials + static_cast<std::int64_t>(other) * kOfRange + place);
          sum.x += more.x;
          sum.y += more.y;
        }
        int tile_there = tile;
        const auto& segment = segment_of(p, tile_there);
        const int output = (tile_there * kHigh + pair / 2) * 16 + (lane >> 2) * 2;
        const int row = r * 8 + (lane & 3) * 2 + pair % 2;
        if (output < p.n && row < segment.m) {
          if (segment.bias) {
            sum.x += segment.bias[output];
            sum.y += segment.bias[output + 1];
          }
          auto* y = static_cast<T*>(p.y) + row * p.y_stride + output;
          if constexpr (kGrouped) y += segment.first * p.y_stride;
          *reinterpret_cast<std::uint32_t*>(y) = pack<T>(sum.x, sum.y);
        }
      }
      // With two places the next meeting's barrier is enough.
      if constexpr (kMeetings == 1) {
        __syncthreads();
      } else {
        meeting ^= 1;
        sums += meeting ? of_meeting : -of_meeting;
      }
    }
    if (kMeetings == 2 && !finishes) __syncthreads();
    if (!finishes && threadIdx.x == 0) set_flag(p.flags + range);
    for (int other = range + 1 + static_cast<int>(threadIdx.x); other < others;
         other += static_cast<int>(blockDim.x))
      p.flags[other] = 0;
  }
}

template <class T, CodeKind kKind, int kHigh, int kRows, bool kFine, class ParamsOf>
cudaError_t launch(const StreamPlan& plan, const ParamsOf& params, cudaStream_t stream) {
  const auto kernel = stream_kernel<T, kKind, kHigh, kRows, kFine, ParamsOf>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(plan.shared_bytes));
  if (error != cudaSuccess) return error;
  return launch_early(kernel, static_cast<unsigned>(plan.split.ranges),
                      static_cast<unsigned>(plan.warps * 32), plan.shared_bytes, plan.early, 1,
                      stream, params);
}

template <class T, CodeKind kKind, bool kFine, class ParamsOf>
cudaError_t launch(const StreamPlan& plan, const ParamsOf& params, cudaStream_t stream) {
  switch (plan.tiles_high * 10 + plan.row_tiles) {
    case 11:
      return launch<T, kKind, 1, 1, kFine>(plan, params, stream);
    case 21:
      return launch<T, kKind, 2, 1, kFine>(plan, params, stream);
    case 41:
      return launch<T, kKind, 4, 1, kFine>(plan, params, stream);
    case 22:
      return launch<T, kKind, 2, 2, kFine>(plan, params, stream);
    case 42:
      return launch<T, kKind, 4, 2, kFine>(plan, params, stream);
    case 24:
      return launch<T, kKind, 2, 4, kFine>(plan, params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <class T, class ParamsOf>
cudaError_t launch(const StreamPlan& plan, CodeKind kind, bool fine, const ParamsOf& params,
                   cudaStream_t stream) {
  if (kind == CodeKind::int4)
    return fine ? launch<T, CodeKind::int4, true>(plan, params, stream)
                : launch<T, CodeKind::int4, false>(plan, params, stream);
  return fine ? launch<T, CodeKind::table4, true>(plan, params, stream)
              : launch<T, CodeKind::table4, false>(plan, params, stream);
}

template <class ParamsOf>
cudaError_t launch(const StreamPlan& plan, const ProductArgs& args, ParamsOf& p,
                   cudaStream_t stream) {
  const auto& shape = args.weight.shape;
  p.codes = static_cast<const uint4*>(args.weight.codes);
  p.words = args.weight.words;
  p.table = args.weight.table;
  p.x = static_cast<const char*>(args.x);
  p.y = args.y;
  p.bias = args.bias;
  p.flags = static_cast<int*>(args.workspace);
  p.partials = reinterpret_cast<float2*>(static_cast<char*>(args.workspace) + 4096);
  p.x_stride = args.x_stride * 2;
  p.y_stride = args.y_stride;
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(shape.n);
  p.k = static_cast<int>(shape.k);
  p.bands = static_cast<int>(shape.bands);
  p.steps = static_cast<int>(shape.steps);
  p.groups = static_cast<int>(shape.groups);
  p.group_shift = shape.group_shift;
  p.split = plan.split;
  const bool fine = shape.group_shift == 5;
  return args.weight.element == Element::f16
             ? launch<__half>(plan, shape.kind, fine, p, stream)
             : launch<__nv_bfloat16>(plan, shape.kind, fine, p, stream);
}

}  // namespace

cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& args, cudaStream_t stream) {
  Params params;
  return launch(plan, args, params, stream);
}

cudaError_t multiply_stream(const StreamPlan& plan, const ProductArgs& all,
                            std::span<const ProductSegment> segments, cudaStream_t stream) {
  if (segments.empty() || segments.size() > kMostSegments) return cudaErrorInvalidValue;
  GroupedParams params;
  params.tiles = plan.split.tiles / static_cast<int>(segments.size());
  auto* to = params.segments;
  for (const auto& from : segments)
    *to++ = {static_cast<const uint4*>(from.codes), from.words, from.bias,
             static_cast<int>(from.first), static_cast<int>(from.rows)};
  return launch(plan, all, params, stream);
}

}  // namespace graft::cuda
