#include <immintrin.h>

#include "kernels/lanes_avx512bf16.h"
#include "kernels/scales_avx512.h"
#include "kernels/slab.h"
#include "kernels/tiles.h"

namespace graft::kernels {
namespace {

constexpr std::int64_t kAhead = 2048;  // bytes of a panel that are fetched in advance

__m512i as_integers(__m512bh v) { return (__m512i)v; }

/// 4-bit codes as bfloat16 through a table of 16, straight from registers.
template <PanelKind kind, int rows, int panels>
void bf16_tile(const TileArgs& args) {
  constexpr int split = rows == 1 ? 2 : 1;
  const PanelShape& shape = *args.shape;
  const __m512 entries = kind == PanelKind::table4 ? _mm512_loadu_ps(args.table)
                                                   : _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1,
                                                                    0, 1, 2, 3, 4, 5, 6, 7);
  // Twice the 16 entries, so that the fifth bit of an index, a neighbour's, does not matter.
  const __m512i codes = as_integers(_mm512_cvtne2ps_pbh(entries, entries));
  __m512 y[rows][panels];
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) y[r][p] = _mm512_setzero_ps();
  const std::uint8_t* line = args.codes;
  const std::uint8_t* x = args.x;
  const float* x_sums = args.x_float_sums;
  const std::int64_t groups = shape.groups, panel_bytes = shape.panel_bytes;
  const std::int64_t scale_stride = groups * kPanelWidth;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int64_t left = g + 1 < groups ? shape.steps_of_group : shape.steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, x_sums += rows) {
      const std::int64_t steps = left < kBlockSteps ? left : kBlockSteps;
      __m512 sums[rows][panels][split];
      for (int r = 0; r < rows; ++r)
        for (int p = 0; p < panels; ++p)
          for (int i = 0; i < split; ++i) sums[r][p][i] = _mm512_setzero_ps();
      for (std::int64_t s = 0; s < steps; ++s, line += 64, x += rows * 16) {
        __m512i v[panels];
        for (int p = 0; p < panels; ++p) {
          v[p] = _mm512_load_si512(line + p * panel_bytes);
          _mm_prefetch(reinterpret_cast<const char*>(line + p * panel_bytes + kAhead), _MM_HINT_T0);
        }
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) {
          __m512bh w[panels];
#pragma GCC unroll 2
          for (int p = 0; p < panels; ++p)
            w[p] = as_bf16(_mm512_permutexvar_epi16(_mm512_srli_epi32(v[p], 4 * t), codes));
#pragma GCC unroll 6
          for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < panels; ++p)
              sums[r][p][t % split] =
                  _mm512_dpbf16_ps(sums[r][p][t % split], w[p], broadcast(x + r * 16 + 4 * t));
        }
      }
      for (int p = 0; p < panels; ++p) {
        const std::int64_t at = p * scale_stride + g * kPanelWidth;
        const __m512 scales = load_scales(args.scales, at);
        __m512 shift = scales;
        if constexpr (kind == PanelKind::int4)
          shift = _mm512_sub_ps(
              _mm512_set1_ps(8),
              _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(
                  reinterpret_cast<const __m128i*>(static_cast<const char*>(args.zeros) + at)))));
        for (int r = 0; r < rows; ++r) {
          __m512 sum = sums[r][p][0];
          if constexpr (split == 2) sum = _mm512_add_ps(sum, sums[r][p][1]);
          if constexpr (kind == PanelKind::int4)
            sum = _mm512_fmadd_ps(shift, _mm512_set1_ps(x_sums[r]), sum);
          y[r][p] = _mm512_fmadd_ps(sum, scales, y[r][p]);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p)
      _mm512_storeu_ps(args.out + r * args.out_stride + p * kPanelWidth, y[r][p]);
}

template <PanelKind kind, int rows>
void choose_rows(const TileArgs& args) {
  if (args.rows == rows)
    return args.panels == 2 ? bf16_tile<kind, rows, 2>(args) : bf16_tile<kind, rows, 1>(args);
  if constexpr (rows > 1) choose_rows<kind, rows - 1>(args);
}

/// Two numbers a lane, rounded once: `first` in the low half.
__m512i pair(__m512 first, __m512 second) {
  const __m512i interleave =
      _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                       21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(interleave, as_integers(_mm512_cvtne2ps_pbh(second, first)));
}

template <PanelKind kind>
void decode_panel(const SlabArgs& args, std::int64_t panel) {
  const PanelShape& shape = *args.shape;
  const __m512 codes = kind == PanelKind::table4
                           ? _mm512_loadu_ps(args.table)
                           : _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const std::uint8_t* line =
      args.codes + panel * shape.panel_bytes + args.first_step * shape.step_bytes;
  std::uint8_t* out = args.slab + panel * 64;
  const std::int64_t stride = args.panels * 64;
  for (std::int64_t step = args.first_step; step < args.last_step;) {
    std::int64_t g = step / shape.steps_of_group;
    if (g >= shape.groups) g = shape.groups - 1;
    std::int64_t end = g + 1 < shape.groups ? (g + 1) * shape.steps_of_group : shape.steps;
    if (end > args.last_step) end = args.last_step;
    const std::int64_t at = (panel * shape.groups + g) * kPanelWidth;
    const __m512 scales = load_scales(args.scales, at);
    __m512 zeros = _mm512_setzero_ps();
    if constexpr (kind == PanelKind::int4)
      zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(
          reinterpret_cast<const __m128i*>(static_cast<const std::uint8_t*>(args.zeros) + at))));
    if constexpr (kind == PanelKind::int8)
      zeros = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(static_cast<const std::int16_t*>(args.zeros) + at))));
    for (; step < end; ++step, line += shape.step_bytes, out += 4 * stride)
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        __m512 first, second;
        if constexpr (kind == PanelKind::int8) {
          const __m512i v = _mm512_load_si512(line + t / 2 * 64);
          const __m512i byte = _mm512_set1_epi32(255);
          first = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 16 * (t % 2)), byte));
          second =
              _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 16 * (t % 2) + 8), byte));
        } else {
          const __m512i v = _mm512_load_si512(line);
          first = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4 * t), codes);
          second = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 4 * t + 16), codes);
        }
        if constexpr (kind != PanelKind::table4) {
          first = _mm512_sub_ps(first, zeros);
          second = _mm512_sub_ps(second, zeros);
        }
        _mm512_store_si512(out + t * stride,
                           pair(_mm512_mul_ps(first, scales), _mm512_mul_ps(second, scales)));
      }
  }
}

/// out (+)= slab times rows of x.
template <int rows, int panels>
void multiply_slab(const SlabArgs& args, const std::uint8_t* x, float* out,
                   std::int64_t out_stride) {
  __m512 sums[rows][panels];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < panels; ++p)
      sums[r][p] = args.first_step == 0 ? _mm512_setzero_ps()
                                        : _mm512_loadu_ps(out + r * out_stride + p * kPanelWidth);
  const std::uint8_t* w = args.slab;
  x += args.first_step * rows * 16;
  for (std::int64_t s = args.first_step; s < args.last_step; ++s, x += rows * 16)
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t, w += panels * 64) {
      __m512bh weights[panels];
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) weights[p] = as_bf16(_mm512_load_si512(w + p * 64));
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const __m512bh value = broadcast(x + r * 16 + 4 * t);
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p)
          sums[r][p] = _mm512_dpbf16_ps(sums[r][p], weights[p], value);
      }
    }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < panels; ++p)
      _mm512_storeu_ps(out + r * out_stride + p * kPanelWidth, sums[r][p]);
}

template <int rows>
void choose_slab_rows(const SlabArgs& args, const std::uint8_t* x, std::int64_t count, float* out,
                      std::int64_t out_stride) {
  if (count == rows)
    return args.panels == 2 ? multiply_slab<rows, 2>(args, x, out, out_stride)
                            : multiply_slab<rows, 1>(args, x, out, out_stride);
  if constexpr (rows > 1) choose_slab_rows<rows - 1>(args, x, count, out, out_stride);
}

}  // namespace

void run_tile_bf16_avx512bf16(const TileArgs& args) {
  if (args.shape->kind == PanelKind::int4) return choose_rows<PanelKind::int4, 6>(args);
  choose_rows<PanelKind::table4, 6>(args);
}

void decode_slab_avx512bf16(const SlabArgs& args) {
  for (std::int64_t panel = 0; panel < args.panels; ++panel) {
    if (args.shape->kind == PanelKind::int4)
      decode_panel<PanelKind::int4>(args, panel);
    else if (args.shape->kind == PanelKind::int8)
      decode_panel<PanelKind::int8>(args, panel);
    else
      decode_panel<PanelKind::table4>(args, panel);
  }
}

void multiply_slab_avx512bf16(const SlabArgs& args, const std::uint8_t* x, std::int64_t rows,
                              float* out, std::int64_t out_stride) {
  choose_slab_rows<kSlabRows>(args, x, rows, out, out_stride);
}

}  // namespace graft::kernels
