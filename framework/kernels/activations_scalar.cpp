#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/activations.h"
#include "kernels/element.h"

namespace graft::kernels {
namespace {

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

/// To the nearest, ties to even; NaN stays NaN.
std::uint16_t to_bf16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

/// x in the order of the steps, zeros where a group's last step is not full.
void gather(const PrepareRow& args) {
  const PanelShape& shape = *args.shape;
  float* out = args.scratch;
  for (std::int64_t begin = 0; begin < shape.k; begin += shape.group) {
    const std::int64_t end = std::min(begin + shape.group, shape.k);
    for (std::int64_t i = begin; i < end; ++i)
      *out++ = element_at(args.x, args.type, args.order ? args.order[i] : i);
    while ((out - args.scratch) % kStep) *out++ = 0;
  }
}

struct Scale {
  float scale, inverse;
};

Scale scale_of(const float* x, std::int64_t count, int limit) {
  std::uint32_t most = 0;
  for (std::int64_t i = 0; i < count; ++i) most = std::max(most, bits_of(x[i]) & 0x7FFFFFFFU);
  if (most >= 0x7F800000U) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const float absmax = float_of(most);
  if (absmax < 1e-30F) return {0, 0};
  return {absmax / static_cast<float>(limit), static_cast<float>(limit) / absmax};
}

void quantize_block(const PrepareRow& args, std::int64_t step, std::int64_t steps,
                    std::int64_t block) {
  const bool two = args.act == Act::a15;
  const float* x = args.scratch + step * kStep;
  const Scale scale = scale_of(x, steps * kStep, two ? 32639 : 127);
  std::int32_t high_sum = 0, low_sum = 0;
  for (std::int64_t s = 0; s < steps; ++s) {
    std::uint8_t* out = args.values + (step + s) * args.rows * (two ? 16 : 8);
    for (std::int64_t i = 0; i < kStep; ++i) {
      // A scale of zero meets NaN and infinities too, which have no integer.
      const auto q =
          scale.inverse == 0
              ? 0
              : static_cast<std::int32_t>(std::nearbyint(x[s * kStep + i] * scale.inverse));
      const std::int32_t high = two ? (q + 128) >> 8 : q, low = q - high * 256;
      out[i] = static_cast<std::uint8_t>(high);
      high_sum += high;
      if (!two) continue;
      out[8 + i] = static_cast<std::uint8_t>(low);
      low_sum += low;
    }
  }
  args.scales[block * args.rows] = scale.scale * args.factor;
  args.sums[2 * block * args.rows] = -high_sum;
  args.sums[2 * block * args.rows + 1] = -low_sum;
}

void lay_out_floats(const PrepareRow& args, std::int64_t step, std::int64_t steps,
                    std::int64_t block) {
  constexpr int kPlain[] = {0, 1, 2, 3, 4, 5, 6, 7};
  constexpr int kBf16[] = {0, 2, 4, 6, 1, 3, 5, 7}, kF32[] = {0, 4, 1, 5, 2, 6, 3, 7};
  const bool narrow = args.act == Act::bf16;
  const int* order = args.shape->kind == PanelKind::int8 ? kPlain : narrow ? kBf16 : kF32;
  float lanes[kStep] = {};
  for (std::int64_t s = step; s < step + steps; ++s)
    for (std::int64_t i = 0; i < kStep; ++i) {
      float value = args.scratch[s * kStep + order[i]];
      if (narrow) {
        const std::uint16_t half = to_bf16(value);
        value = float_of(static_cast<std::uint32_t>(half) << 16);
        std::memcpy(args.values + s * args.rows * 16 + 2 * i, &half, 2);
      } else {
        std::memcpy(args.values + s * args.rows * 32 + 4 * i, &value, 4);
      }
      lanes[i] += value;
    }
  // Eight partial sums in this order, as the vector levels add.
  args.float_sums[block * args.rows] = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
                                       ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace

void prepare_row_scalar(const PrepareRow& args) {
  gather(args);
  const PanelShape& shape = *args.shape;
  const bool integer = args.act == Act::a15 || args.act == Act::a8;
  std::int64_t step = 0, block = 0;
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    std::int64_t left = g + 1 < shape.groups ? shape.steps_of_group : shape.steps_of_last_group;
    for (; left > 0; left -= kBlockSteps, ++block) {
      const std::int64_t steps = std::min(left, kBlockSteps);
      if (integer)
        quantize_block(args, step, steps, block);
      else
        lay_out_floats(args, step, steps, block);
      step += steps;
    }
  }
}

}  // namespace graft::kernels
