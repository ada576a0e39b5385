#include <immintrin.h>

#include "kernels/tiles.h"

namespace graft::kernels {
namespace {

using AliasedInt = int __attribute__((may_alias));

__m256i load(const std::uint8_t* bytes) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

/// Eight scales.
__m256 load_scales(const Scales& scales, std::int64_t index) {
  if (scales.type == ElementType::f32)
    return _mm256_loadu_ps(static_cast<const float*>(scales.data) + index);
  const __m128i halves = _mm_loadu_si128(
      reinterpret_cast<const __m128i*>(static_cast<const std::uint16_t*>(scales.data) + index));
  if (scales.type == ElementType::f16) return _mm256_cvtph_ps(halves);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/// Eight zero points.
template <PanelKind kind>
__m256i load_zeros(const void* zeros, std::int64_t index) {
  if constexpr (kind == PanelKind::int8)
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(
        reinterpret_cast<const __m128i*>(static_cast<const std::int16_t*>(zeros) + index)));
  else
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(
        reinterpret_cast<const __m128i*>(static_cast<const std::uint8_t*>(zeros) + index)));
}

/// sums + four products a lane; codes up to 15 cannot saturate the 16-bit step.
__m256i dot4(__m256i sums, __m256i codes, __m256i x) {
  return _mm256_add_epi32(sums,
                          _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
}

/// The same for codes up to 255, which would.
__m256i dot8(__m256i sums, __m256i codes, __m256i x) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(x, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

template <PanelKind kind>
__m256i dot(__m256i sums, __m256i codes, __m256i x) {
  if constexpr (kind == PanelKind::int4) return dot4(sums, codes, x);
  return dot8(sums, codes, x);
}

/// Rows [row, row + rows) of one panel with integer planes; `two`: a15, else a8.
template <PanelKind kind, bool two, int rows>
void integer_rows(const TileArgs& args, std::int64_t panel, std::int64_t row) {
  constexpr bool table = kind == PanelKind::table4;
  constexpr int width = two ? 16 : 8, parts = two || table ? 2 : 1;
  const PanelShape& shape = *args.shape;
  const __m256i nibbles = _mm256_set1_epi8(15);
  __m256i high_table = nibbles, low_table = nibbles;
  if constexpr (table) {
    high_table = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.table_high)));
    low_table = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.table_low)));
  }
  __m256 y[rows][2];
  for (int r = 0; r < rows; ++r) y[r][0] = y[r][1] = _mm256_setzero_ps();
  const std::uint8_t* line = args.codes + panel * shape.panel_bytes;
  const std::uint8_t* x = args.x + row * width;
  const float* x_scales = args.x_scales + row;
  const std::int32_t* x_sums = args.x_sums + 2 * row;
  const std::int64_t groups = shape.groups;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t scales_at = (panel * groups + g) * kPanelWidth;
    std::int64_t left = g + 1 < groups ? shape.steps_of_group : shape.steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, x_scales += args.rows, x_sums += 2 * args.rows) {
      const std::int64_t steps = left < kBlockSteps ? left : kBlockSteps;
      __m256i sums[rows][2][parts];
      for (int half = 0; half < 2; ++half) {
        __m256i zeros = nibbles;
        if constexpr (!table) zeros = load_zeros<kind>(args.zeros, scales_at + 8 * half);
        for (int r = 0; r < rows; ++r) {
          const std::int32_t high = x_sums[2 * r], low = x_sums[2 * r + 1];
          if constexpr (table) {
            sums[r][half][0] = _mm256_set1_epi32(128 * high);
            sums[r][half][1] = _mm256_set1_epi32(128 * (two ? high + low : high));
          } else {
            sums[r][half][0] = _mm256_madd_epi16(zeros, _mm256_set1_epi32(high));
            if constexpr (two) sums[r][half][1] = _mm256_madd_epi16(zeros, _mm256_set1_epi32(low));
          }
        }
      }
      for (std::int64_t s = 0; s < steps; ++s, line += shape.step_bytes, x += args.rows * width) {
        for (int half = 0; half < 2; ++half)
          for (int four = 0; four < 2; ++four) {  // inputs 0..3, then 4..7
            __m256i codes, low_codes = nibbles;
            if constexpr (kind == PanelKind::int8) {
              codes = load(line + 64 * four + 32 * half);
            } else {
              const __m256i v = load(line + 32 * half);
              codes = _mm256_and_si256(four ? _mm256_srli_epi32(v, 4) : v, nibbles);
            }
            if constexpr (table) {
              low_codes = _mm256_shuffle_epi8(low_table, codes);
              codes = _mm256_shuffle_epi8(high_table, codes);
            }
            for (int r = 0; r < rows; ++r) {
              const std::uint8_t* at = x + r * width + 4 * four;
              const __m256i high = _mm256_set1_epi32(*reinterpret_cast<const AliasedInt*>(at));
              auto& sum = sums[r][half];
              sum[0] = dot<kind>(sum[0], codes, high);
              if constexpr (table) sum[1] = dot<kind>(sum[1], low_codes, high);
              if constexpr (two)
                sum[1] = dot<kind>(sum[1], codes,
                                   _mm256_set1_epi32(*reinterpret_cast<const AliasedInt*>(at + 8)));
            }
          }
      }
      for (int half = 0; half < 2; ++half) {
        const __m256 scales = load_scales(args.scales, scales_at + 8 * half);
        for (int r = 0; r < rows; ++r) {
          __m256i total = sums[r][half][0];
          if constexpr (parts == 2)
            total = _mm256_add_epi32(_mm256_slli_epi32(total, 8), sums[r][half][1]);
          y[r][half] =
              _mm256_fmadd_ps(_mm256_cvtepi32_ps(total),
                              _mm256_mul_ps(scales, _mm256_set1_ps(x_scales[r])), y[r][half]);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(args.out + (row + r) * args.out_stride + panel * kPanelWidth + 8 * half,
                       y[r][half]);
}

/// Rows of one panel in float32: code - middle, or the table, times x.
template <PanelKind kind, int rows>
void float_rows(const TileArgs& args, std::int64_t panel, std::int64_t row) {
  constexpr bool table = kind == PanelKind::table4;
  const PanelShape& shape = *args.shape;
  const __m256 lower =
      table ? _mm256_loadu_ps(args.table) : _mm256_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1);
  const __m256 upper =
      table ? _mm256_loadu_ps(args.table + 8) : _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000U));
  __m256 y[rows][2];
  for (int r = 0; r < rows; ++r) y[r][0] = y[r][1] = _mm256_setzero_ps();
  const std::uint8_t* line = args.codes + panel * shape.panel_bytes;
  const float* x = reinterpret_cast<const float*>(args.x) + row * kStep;
  const float* x_sums = args.x_float_sums + row;
  const std::int64_t groups = shape.groups;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t scales_at = (panel * groups + g) * kPanelWidth;
    std::int64_t left = g + 1 < groups ? shape.steps_of_group : shape.steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, x_sums += args.rows) {
      const std::int64_t steps = left < kBlockSteps ? left : kBlockSteps;
      __m256 sums[rows][2];
      for (int r = 0; r < rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
      for (std::int64_t s = 0; s < steps; ++s, line += shape.step_bytes, x += args.rows * kStep)
        for (int half = 0; half < 2; ++half)
#pragma GCC unroll 8
          for (int t = 0; t < kStep; ++t) {
            __m256 w;
            if constexpr (kind == PanelKind::int8) {
              const __m256i top =
                  _mm256_slli_epi32(load(line + t / 4 * 64 + 32 * half), 24 - 8 * (t % 4));
              w = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_xor_si256(top, sign), 24));
            } else {
              const __m256i v = load(line + 32 * half);
              const __m256i index = _mm256_srli_epi32(v, 4 * t);
              const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(v, 28 - 4 * t));
              w = _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index),
                                   _mm256_permutevar8x32_ps(upper, index), bit3);
            }
            for (int r = 0; r < rows; ++r)
              sums[r][half] = _mm256_fmadd_ps(w, _mm256_set1_ps(x[r * kStep + t]), sums[r][half]);
          }
      for (int half = 0; half < 2; ++half) {
        const std::int64_t at = scales_at + 8 * half;
        const __m256 scales = load_scales(args.scales, at);
        __m256 shift = lower;
        if constexpr (!table)
          shift = _mm256_sub_ps(_mm256_set1_ps(kind == PanelKind::int8 ? 128.0F : 8.0F),
                                _mm256_cvtepi32_ps(load_zeros<kind>(args.zeros, at)));
        for (int r = 0; r < rows; ++r) {
          __m256 sum = sums[r][half];
          if constexpr (!table) sum = _mm256_fmadd_ps(shift, _mm256_set1_ps(x_sums[r]), sum);
          y[r][half] = _mm256_fmadd_ps(sum, scales, y[r][half]);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_ps(args.out + (row + r) * args.out_stride + panel * kPanelWidth + 8 * half,
                       y[r][half]);
}

template <PanelKind kind, int rows>
void run_rows(const TileArgs& args, std::int64_t panel, std::int64_t row) {
  if (args.act == Act::a15) return integer_rows<kind, true, rows>(args, panel, row);
  if (args.act == Act::a8) return integer_rows<kind, false, rows>(args, panel, row);
  float_rows<kind, rows>(args, panel, row);
}

template <PanelKind kind>
void run(const TileArgs& args) {
  for (std::int64_t panel = 0; panel < args.panels; ++panel) {
    std::int64_t row = 0;
    for (; row + 2 <= args.rows; row += 2) run_rows<kind, 2>(args, panel, row);
    if (row < args.rows) run_rows<kind, 1>(args, panel, row);
  }
}

}  // namespace

void run_tile_avx2(const TileArgs& args) {
  switch (args.shape->kind) {
    case PanelKind::int4:
      return run<PanelKind::int4>(args);
    case PanelKind::int8:
      return run<PanelKind::int8>(args);
    case PanelKind::table4:
      return run<PanelKind::table4>(args);
  }
}

}  // namespace graft::kernels
