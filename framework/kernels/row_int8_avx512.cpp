#include <immintrin.h>

#include "kernels/row_int8.h"

namespace graft::kernels {
namespace {

using AliasedInt = int __attribute__((may_alias));

constexpr std::int64_t kAhead = 2048;  // bytes of a panel that are fetched in advance

template <int rows, int panels>
void run_rows(const PanelShape& shape, const std::uint8_t* codes, const std::uint8_t* x,
              const std::int32_t* negated_sums, std::int32_t* out) {
  constexpr int split = rows * panels <= 4 ? 2 : 1;
  const std::int64_t panel_bytes = shape.panel_bytes;
  __m512i sums[rows][panels][split];
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) {
      sums[r][p][0] = _mm512_slli_epi32(_mm512_set1_epi32(negated_sums[r]), 7);
      if constexpr (split == 2) sums[r][p][1] = _mm512_setzero_si512();
    }
  for (std::int64_t s = 0; s < shape.steps; ++s, codes += 128, x += rows * kStep)
#pragma GCC unroll 2
    for (int four = 0; four < 2; ++four) {
      __m512i w[panels];
#pragma GCC unroll 2
      for (int p = 0; p < panels; ++p) {
        const std::uint8_t* line = codes + p * panel_bytes + 64 * four;
        w[p] = _mm512_load_si512(line);
        _mm_prefetch(reinterpret_cast<const char*>(line + kAhead), _MM_HINT_T0);
      }
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const __m512i value =
            _mm512_set1_epi32(*reinterpret_cast<const AliasedInt*>(x + r * kStep + 4 * four));
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p) {
          auto& sum = sums[r][p][split == 2 ? four : 0];
          sum = _mm512_dpbusd_epi32(sum, w[p], value);
        }
      }
    }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) {
      __m512i sum = sums[r][p][0];
      if constexpr (split == 2) sum = _mm512_add_epi32(sum, sums[r][p][1]);
      _mm512_storeu_si512(out + (r * panels + p) * kPanelWidth, sum);
    }
}

template <int rows>
void choose_rows(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                 const std::uint8_t* x, const std::int32_t* negated_sums, std::int64_t count,
                 std::int32_t* sums) {
  if (count == rows)
    return panels == 2 ? run_rows<rows, 2>(shape, codes, x, negated_sums, sums)
                       : run_rows<rows, 1>(shape, codes, x, negated_sums, sums);
  if constexpr (rows > 1) choose_rows<rows - 1>(shape, codes, panels, x, negated_sums, count, sums);
}

}  // namespace

void row_int8_tile_avx512(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panels,
                          const std::uint8_t* x, const std::int32_t* negated_sums,
                          std::int64_t rows, std::int32_t* sums) {
  choose_rows<12>(shape, codes, panels, x, negated_sums, rows, sums);
}

}  // namespace graft::kernels
