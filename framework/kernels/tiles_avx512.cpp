#include <immintrin.h>

#include "kernels/scales_avx512.h"
#include "kernels/tiles.h"

namespace graft::kernels {
namespace {

using AliasedInt = int __attribute__((may_alias));

/// Bytes of a panel that are fetched in advance. On a Sapphire Rapids core the hardware's own
/// prefetchers leave a quarter of the memory's rate unused where two panels stream (measured).
constexpr std::int64_t kAhead = 2048;

__m512i broadcast(const std::uint8_t* bytes) {
  return _mm512_set1_epi32(*reinterpret_cast<const AliasedInt*>(bytes));
}

template <PanelKind kind>
__m512i load_zeros(const void* zeros, std::int64_t index) {
  if constexpr (kind == PanelKind::int8)
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(static_cast<const std::int16_t*>(zeros) + index)));
  else
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(
        reinterpret_cast<const __m128i*>(static_cast<const std::uint8_t*>(zeros) + index)));
}

/// Integer planes. `two`: a15, else a8. A block's sums live in registers; with few of them, inputs
/// 0..3 and 4..7 have sums of their own, because a dot takes five cycles.
template <PanelKind kind, bool two, int rows, int panels>
void integer_tile(const TileArgs& args) {
  constexpr bool table = kind == PanelKind::table4;
  constexpr int width = two ? 16 : 8;
  constexpr int split = rows * panels <= 4 ? 2 : 1;
  constexpr int parts = two || table ? 2 : 1;
  const PanelShape& shape = *args.shape;
  const __m512i nibbles = _mm512_set1_epi8(15);
  __m512i high_table = nibbles, low_table = nibbles;
  if constexpr (table) {
    high_table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(args.table_high)));
    low_table =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(args.table_low)));
  }
  __m512 y[rows][panels];
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) y[r][p] = _mm512_setzero_ps();
  const std::uint8_t* line = args.codes;
  const std::uint8_t* x = args.x;
  const float* x_scales = args.x_scales;
  const std::int32_t* x_sums = args.x_sums;
  const std::int64_t groups = shape.groups, panel_bytes = shape.panel_bytes;
  const std::int64_t scale_stride = groups * kPanelWidth;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int64_t left = g + 1 < groups ? shape.steps_of_group : shape.steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, x_scales += rows, x_sums += 2 * rows) {
      const std::int64_t steps = left < kBlockSteps ? left : kBlockSteps;
      __m512i sums[rows][panels][parts][split];
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) {
        __m512i zeros = nibbles;
        if constexpr (!table)
          zeros = load_zeros<kind>(args.zeros, p * scale_stride + g * kPanelWidth);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
          const std::int32_t high = x_sums[2 * r], low = x_sums[2 * r + 1];
          if constexpr (table) {
            sums[r][p][0][0] = _mm512_set1_epi32(128 * high);
            sums[r][p][1][0] = _mm512_set1_epi32(128 * (two ? high + low : high));
          } else {
            sums[r][p][0][0] = _mm512_madd_epi16(zeros, _mm512_set1_epi32(high));
            if constexpr (two) sums[r][p][1][0] = _mm512_madd_epi16(zeros, _mm512_set1_epi32(low));
          }
          if constexpr (split == 2)
            for (int part = 0; part < parts; ++part) sums[r][p][part][1] = _mm512_setzero_si512();
        }
      }
      for (std::int64_t s = 0; s < steps; ++s, line += shape.step_bytes, x += rows * width) {
        __m512i first[panels], second[panels], low_first[panels], low_second[panels];
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p) {
          const std::uint8_t* at = line + p * panel_bytes;
          const __m512i v = _mm512_load_si512(at);
          _mm_prefetch(reinterpret_cast<const char*>(at + kAhead), _MM_HINT_T0);
          if constexpr (kind == PanelKind::int8)
            _mm_prefetch(reinterpret_cast<const char*>(at + kAhead + 64), _MM_HINT_T0);
          if constexpr (kind == PanelKind::int8) {
            first[p] = v;
            second[p] = _mm512_load_si512(at + 64);
          } else {
            first[p] = _mm512_and_si512(v, nibbles);
            second[p] = _mm512_and_si512(_mm512_srli_epi32(v, 4), nibbles);
          }
          if constexpr (table) {
            low_first[p] = _mm512_shuffle_epi8(low_table, first[p]);
            low_second[p] = _mm512_shuffle_epi8(low_table, second[p]);
            first[p] = _mm512_shuffle_epi8(high_table, first[p]);
            second[p] = _mm512_shuffle_epi8(high_table, second[p]);
          }
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
          const __m512i high_first = broadcast(x + r * width);
          const __m512i high_second = broadcast(x + r * width + 4);
#pragma GCC unroll 2
          for (int p = 0; p < panels; ++p) {
            auto& sum = sums[r][p];
            sum[0][0] = _mm512_dpbusd_epi32(sum[0][0], first[p], high_first);
            sum[0][split - 1] = _mm512_dpbusd_epi32(sum[0][split - 1], second[p], high_second);
            if constexpr (table) {
              sum[1][0] = _mm512_dpbusd_epi32(sum[1][0], low_first[p], high_first);
              sum[1][split - 1] =
                  _mm512_dpbusd_epi32(sum[1][split - 1], low_second[p], high_second);
            }
          }
          if constexpr (two) {
            const __m512i x_first = broadcast(x + r * width + 8);
            const __m512i x_second = broadcast(x + r * width + 12);
#pragma GCC unroll 2
            for (int p = 0; p < panels; ++p) {
              auto& sum = sums[r][p];
              sum[1][0] = _mm512_dpbusd_epi32(sum[1][0], first[p], x_first);
              sum[1][split - 1] = _mm512_dpbusd_epi32(sum[1][split - 1], second[p], x_second);
            }
          }
        }
      }
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) {
        const __m512 scales = load_scales(args.scales, p * scale_stride + g * kPanelWidth);
#pragma GCC unroll 12
        for (int r = 0; r < rows; ++r) {
          auto& sum = sums[r][p];
          __m512i total = sum[0][0];
          if constexpr (split == 2) total = _mm512_add_epi32(total, sum[0][1]);
          if constexpr (parts == 2) {
            total = _mm512_add_epi32(_mm512_slli_epi32(total, 8), sum[1][0]);
            if constexpr (split == 2) total = _mm512_add_epi32(total, sum[1][1]);
          }
          y[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total),
                                    _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[r])), y[r][p]);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p)
      _mm512_storeu_ps(args.out + r * args.out_stride + p * kPanelWidth, y[r][p]);
}

/// float32: code - middle, or the table, times x.
template <PanelKind kind, int rows, int panels>
void float_tile(const TileArgs& args) {
  constexpr int split = rows == 1 ? 2 : 1;
  const PanelShape& shape = *args.shape;
  const __m512 codes = kind == PanelKind::table4
                           ? _mm512_loadu_ps(args.table)
                           : _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000U));
  const __m512 middle = _mm512_set1_ps(kind == PanelKind::int8 ? 128.0F : 8.0F);
  __m512 y[rows][panels];
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) y[r][p] = _mm512_setzero_ps();
  const std::uint8_t* line = args.codes;
  const auto* x = reinterpret_cast<const float*>(args.x);
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
      for (std::int64_t s = 0; s < steps; ++s, line += shape.step_bytes, x += rows * kStep) {
        __m512i v[panels];
        for (int p = 0; p < panels; ++p) {
          v[p] = _mm512_load_si512(line + p * panel_bytes);
          _mm_prefetch(reinterpret_cast<const char*>(line + p * panel_bytes + kAhead), _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int t = 0; t < kStep; ++t) {
          if constexpr (kind == PanelKind::int8)
            if (t == 4)
              for (int p = 0; p < panels; ++p)
                v[p] = _mm512_load_si512(line + p * panel_bytes + 64);
          __m512 w[panels];
#pragma GCC unroll 2
          for (int p = 0; p < panels; ++p) {
            if constexpr (kind == PanelKind::int8) {
              const __m512i top = _mm512_slli_epi32(v[p], 24 - 8 * (t % 4));
              w[p] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_xor_si512(top, sign), 24));
            } else {
              w[p] = _mm512_permutexvar_ps(_mm512_srli_epi32(v[p], 4 * t), codes);
            }
          }
#pragma GCC unroll 6
          for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int p = 0; p < panels; ++p)
              sums[r][p][t % split] =
                  _mm512_fmadd_ps(w[p], _mm512_set1_ps(x[r * kStep + t]), sums[r][p][t % split]);
        }
      }
      for (int p = 0; p < panels; ++p) {
        const std::int64_t at = p * scale_stride + g * kPanelWidth;
        const __m512 scales = load_scales(args.scales, at);
        __m512 shift = middle;
        if constexpr (kind != PanelKind::table4)
          shift = _mm512_sub_ps(middle, _mm512_cvtepi32_ps(load_zeros<kind>(args.zeros, at)));
        for (int r = 0; r < rows; ++r) {
          __m512 sum = sums[r][p][0];
          if constexpr (split == 2) sum = _mm512_add_ps(sum, sums[r][p][1]);
          if constexpr (kind != PanelKind::table4)
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

template <PanelKind kind, Act act, int rows, int panels>
void tile(const TileArgs& args) {
  if constexpr (act == Act::f32)
    float_tile<kind, rows, panels>(args);
  else
    integer_tile<kind, act == Act::a15, rows, panels>(args);
}

template <PanelKind kind, Act act, int rows>
void choose_rows(const TileArgs& args) {
  if (args.rows == rows)
    return args.panels == 2 ? tile<kind, act, rows, 2>(args) : tile<kind, act, rows, 1>(args);
  if constexpr (rows > 1) choose_rows<kind, act, rows - 1>(args);
}

template <PanelKind kind>
void choose_act(const TileArgs& args) {
  constexpr bool table = kind == PanelKind::table4;
  switch (args.act) {
    case Act::a15:
      return choose_rows<kind, Act::a15, table ? 5 : 6>(args);
    case Act::a8:
      return choose_rows<kind, Act::a8, table ? 5 : 12>(args);
    case Act::f32:
    case Act::bf16:
      return choose_rows<kind, Act::f32, 6>(args);
  }
}

}  // namespace

void run_tile_avx512(const TileArgs& args) {
  switch (args.shape->kind) {
    case PanelKind::int4:
      return choose_act<PanelKind::int4>(args);
    case PanelKind::int8:
      return choose_act<PanelKind::int8>(args);
    case PanelKind::table4:
      return choose_act<PanelKind::table4>(args);
  }
}

}  // namespace graft::kernels
