#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/element.h"
#include "kernels/tiles.h"

namespace graft::kernels {
namespace {

/// A zero point of the weight, or 0.
int zero_at(const TileArgs& args, std::int64_t index) {
  switch (args.shape->kind) {
    case PanelKind::int4:
      return static_cast<const std::uint8_t*>(args.zeros)[index];
    case PanelKind::int8:
      return static_cast<const std::int16_t*>(args.zeros)[index];
    case PanelKind::table4:
      break;
  }
  return 0;
}

struct Block {
  std::int64_t panel, group, block, step, steps;
};

unsigned code_of(const TileArgs& args, const Block& at, std::int64_t step, std::int64_t i,
                 std::int64_t j) {
  const PanelShape& shape = *args.shape;
  const std::uint8_t* line = args.codes + at.panel * shape.panel_bytes + step * shape.step_bytes;
  if (shape.kind == PanelKind::int8) return line[i / 4 * 64 + 4 * j + i % 4];
  return line[4 * j + i % 4] >> (i / 4 * 4) & 15U;
}

/// The integer sum of one block for one row and output.
std::int32_t integer_sum(const TileArgs& args, const Block& at, std::int64_t row, std::int64_t j) {
  const PanelShape& shape = *args.shape;
  const bool two = args.act == Act::a15, table = shape.kind == PanelKind::table4;
  const std::int64_t width = two ? 16 : 8;
  const std::int32_t* sums = args.x_sums + 2 * (at.block * args.rows + row);
  const int zero = table ? 128 : zero_at(args, (at.panel * shape.groups + at.group) * 16 + j);
  // x = 256 h + l. Codes: high = sum of (code - zero) * h, low likewise with l. Tables, whose value
  // is 256 t + u: high = t h, low = t l + u h, and u l is left out.
  std::int32_t high = zero * sums[0], low = two ? zero * sums[1] : 0;
  if (table) low += zero * sums[0];
  for (std::int64_t s = at.step; s < at.step + at.steps; ++s) {
    const auto* x = reinterpret_cast<const std::int8_t*>(args.x + (s * args.rows + row) * width);
    for (std::int64_t i = 0; i < kStep; ++i) {
      const unsigned code = code_of(args, at, s, i, j);
      const std::int32_t h = x[i], l = two ? x[8 + i] : 0;
      const std::int32_t c = table ? args.table_high[code] : static_cast<std::int32_t>(code);
      high += c * h;
      low += c * l;
      if (table) low += args.table_low[code] * h;
    }
  }
  return two || table ? high * 256 + low : high;
}

/// The float sum of one block: code - 8, code - 128 or the table times x.
float float_sum(const TileArgs& args, const Block& at, std::int64_t row, std::int64_t j) {
  constexpr int kBf16[] = {0, 2, 4, 6, 1, 3, 5, 7}, kF32[] = {0, 4, 1, 5, 2, 6, 3, 7};
  const PanelKind kind = args.shape->kind;
  const bool narrow = args.act == Act::bf16;
  float sum = 0;
  for (std::int64_t s = at.step; s < at.step + at.steps; ++s)
    for (std::int64_t t = 0; t < kStep; ++t) {
      const std::int64_t i = kind == PanelKind::int8 ? t : narrow ? kBf16[t] : kF32[t];
      const unsigned code = code_of(args, at, s, i, j);
      const float w = kind == PanelKind::table4
                          ? args.table[code]
                          : static_cast<float>(code) - (kind == PanelKind::int4 ? 8.0F : 128.0F);
      float x;
      if (narrow) {
        std::uint16_t half;
        std::memcpy(&half, args.x + (s * args.rows + row) * 16 + 2 * t, 2);
        const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
        std::memcpy(&x, &bits, 4);
      } else {
        std::memcpy(&x, args.x + (s * args.rows + row) * 32 + 4 * t, 4);
      }
      sum = std::fma(w, x, sum);
    }
  return sum;
}

}  // namespace

void run_tile_scalar(const TileArgs& args) {
  const PanelShape& shape = *args.shape;
  const bool integer = args.act == Act::a15 || args.act == Act::a8;
  const float middle = shape.kind == PanelKind::int8 ? 128.0F : 8.0F;
  for (std::int64_t panel = 0; panel < args.panels; ++panel)
    for (std::int64_t row = 0; row < args.rows; ++row)
      for (std::int64_t j = 0; j < kPanelWidth; ++j) {
        float y = 0;
        Block at{panel, 0, 0, 0, 0};
        for (at.group = 0; at.group < shape.groups; ++at.group) {
          std::int64_t left =
              at.group + 1 < shape.groups ? shape.steps_of_group : shape.steps_of_last_group;
          const std::int64_t index = (panel * shape.groups + at.group) * 16 + j;
          for (; left > 0; left -= kBlockSteps, at.step += at.steps, ++at.block) {
            at.steps = std::min(left, kBlockSteps);
            const std::int64_t x_index = at.block * args.rows + row;
            if (integer) {
              y = std::fma(
                  static_cast<float>(integer_sum(args, at, row, j)),
                  element_at(args.scales.data, args.scales.type, index) * args.x_scales[x_index],
                  y);
            } else {
              float sum = float_sum(args, at, row, j);
              if (shape.kind != PanelKind::table4)
                sum = std::fma(middle - static_cast<float>(zero_at(args, index)),
                               args.x_float_sums[x_index], sum);
              y = std::fma(sum, element_at(args.scales.data, args.scales.type, index), y);
            }
          }
        }
        args.out[row * args.out_stride + panel * kPanelWidth + j] = y;
      }
}

bool split_table(const float* table, std::uint8_t* high, std::uint8_t* low, float* factor) {
  float most = 0;
  for (int i = 0; i < 16; ++i) most = std::max(most, std::abs(table[i]));
  if (!(most > 0) || !std::isfinite(most)) return false;
  *factor = most / 32639.0F;
  for (int i = 0; i < 16; ++i) {
    const auto value =
        static_cast<std::int32_t>(std::nearbyint(static_cast<double>(table[i]) / *factor));
    const std::int32_t upper = (value + 128) >> 8;
    high[i] = static_cast<std::uint8_t>(upper + 128);
    low[i] = static_cast<std::uint8_t>(value - upper * 256 + 128);
  }
  return true;
}

}  // namespace graft::kernels
