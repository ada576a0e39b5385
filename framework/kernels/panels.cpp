#include "kernels/panels.h"

#include <algorithm>
#include <cstring>

namespace graft::kernels {
namespace {

/// One step: 8 inputs x 16 outputs of bytes to 64 or 128 bytes.
void pack_step(PanelKind kind, const std::uint8_t* in, std::uint8_t* out) {
  for (std::int64_t j = 0; j < kPanelWidth; ++j)
    for (std::int64_t i = 0; i < 4; ++i) {
      const std::uint8_t first = in[i * kPanelWidth + j];
      const std::uint8_t second = in[(i + 4) * kPanelWidth + j];
      if (kind == PanelKind::int8) {
        out[4 * j + i] = first;
        out[64 + 4 * j + i] = second;
      } else {
        out[4 * j + i] = static_cast<std::uint8_t>((first & 15U) | (second & 15U) << 4);
      }
    }
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

PanelShape panel_shape(PanelKind kind, std::int64_t n, std::int64_t k, std::int64_t group) {
  PanelShape shape;
  shape.kind = kind;
  shape.n = n;
  shape.k = k;
  shape.group = std::min(group, k);
  shape.panels = divide_up(n, kPanelWidth);
  shape.groups = divide_up(k, shape.group);
  const std::int64_t whole = shape.groups - 1;
  shape.steps_of_group = divide_up(shape.group, kStep);
  shape.steps_of_last_group = divide_up(k - whole * shape.group, kStep);
  shape.steps = whole * shape.steps_of_group + shape.steps_of_last_group;
  shape.blocks = whole * divide_up(shape.steps_of_group, kBlockSteps) +
                 divide_up(shape.steps_of_last_group, kBlockSteps);
  shape.step_bytes = kind == PanelKind::int8 ? 128 : 64;
  shape.panel_bytes = shape.steps * shape.step_bytes;
  shape.code_bytes = shape.panels * shape.panel_bytes;
  shape.scale_count = shape.panels * shape.groups * kPanelWidth;
  shape.zero_bytes = kind == PanelKind::table4 ? 0
                     : kind == PanelKind::int8 ? 2 * shape.scale_count
                                               : shape.scale_count;
  return shape;
}

void pack_panels(const PanelShape& shape, const CodeSource& source, std::int64_t first,
                 std::int64_t last, std::uint8_t* codes) {
  constexpr std::int64_t kRun = 128;  // inputs that are read at a time
  std::uint8_t wide[kRun * kPanelWidth];
  for (std::int64_t panel = first; panel < last; ++panel) {
    std::uint8_t* out = codes + panel * shape.panel_bytes;
    const std::int64_t width = std::min(kPanelWidth, shape.n - panel * kPanelWidth);
    for (std::int64_t begin = 0; begin < shape.k; begin += shape.group) {
      const std::int64_t end = std::min(begin + shape.group, shape.k);
      for (std::int64_t k = begin; k < end; k += kRun) {
        const std::int64_t count = std::min(kRun, end - k);
        const std::int64_t steps = (count + kStep - 1) / kStep;
        source.read(source.self, panel, k, count, wide);
        if (width < kPanelWidth)
          for (std::int64_t i = 0; i < count; ++i)
            std::memset(wide + i * kPanelWidth + width, 0,
                        static_cast<std::size_t>(kPanelWidth - width));
        std::memset(wide + count * kPanelWidth, 0,
                    static_cast<std::size_t>((steps * kStep - count) * kPanelWidth));
        for (std::int64_t s = 0; s < steps; ++s, out += shape.step_bytes)
          pack_step(shape.kind, wide + s * kStep * kPanelWidth, out);
      }
    }
  }
}

void pack_words(const PanelShape& shape, const WordSource& source, std::int64_t first,
                std::int64_t last, std::uint8_t* codes) {
  constexpr std::int64_t kRun = 64;  // steps that are read at a time
  std::uint32_t words[kRun * kPanelWidth];
  // Four nibbles to the low nibbles of four bytes.
  const auto spread = [](std::uint32_t nibbles) {
    const std::uint32_t bytes = (nibbles | nibbles << 8) & 0x00FF00FFU;
    return (bytes | bytes << 4) & 0x0F0F0F0FU;
  };
  for (std::int64_t panel = first; panel < last; ++panel) {
    std::uint8_t* out = codes + panel * shape.panel_bytes;
    const std::int64_t width = std::min(kPanelWidth, shape.n - panel * kPanelWidth);
    for (std::int64_t step = 0; step < shape.steps; step += kRun) {
      const std::int64_t count = std::min(kRun, shape.steps - step);
      source.read(source.self, panel, step, count, words);
      if (width < kPanelWidth)
        for (std::int64_t s = 0; s < count; ++s)
          std::fill(words + s * kPanelWidth + width, words + (s + 1) * kPanelWidth, 0U);
      for (std::int64_t i = 0; i < count * kPanelWidth; ++i)
        words[i] = spread(words[i] & 0xFFFFU) | spread(words[i] >> 16) << 4;
      std::memcpy(out, words, static_cast<std::size_t>(count * 64));
      out += count * 64;
    }
  }
}

void unpack_words(const PanelShape& shape, const std::uint8_t* codes, std::int64_t panel,
                  std::int64_t first, std::int64_t count, std::uint32_t* words) {
  std::memcpy(words, codes + panel * shape.panel_bytes + first * 64,
              static_cast<std::size_t>(count * 64));
  const auto gather = [](std::uint32_t nibbles) {
    const std::uint32_t bytes = (nibbles | nibbles >> 4) & 0x00FF00FFU;
    return (bytes | bytes >> 8) & 0xFFFFU;
  };
  for (std::int64_t i = 0; i < count * kPanelWidth; ++i)
    words[i] = gather(words[i] & 0x0F0F0F0FU) | gather(words[i] >> 4 & 0x0F0F0F0FU) << 16;
}

void unpack_codes(const PanelShape& shape, const std::uint8_t* packed, std::int64_t panel,
                  std::int64_t first, std::int64_t count, std::uint8_t* codes) {
  for (std::int64_t k = first; k < first + count; ++k, codes += kPanelWidth) {
    const std::int64_t within = k % shape.group, i = within % kStep;
    const std::int64_t step = k / shape.group * shape.steps_of_group + within / kStep;
    const std::uint8_t* line = packed + panel * shape.panel_bytes + step * shape.step_bytes + i % 4;
    const bool bytes = shape.kind == PanelKind::int8;
    if (bytes) line += i / 4 * 64;
    const std::int64_t shift = bytes ? 0 : i / 4 * 4;
    const int mask = bytes ? 255 : 15;
    for (std::int64_t j = 0; j < kPanelWidth; ++j)
      codes[j] = static_cast<std::uint8_t>(line[4 * j] >> shift & mask);
  }
}

std::uint8_t code_at(const PanelShape& shape, const std::uint8_t* codes, std::int64_t n,
                     std::int64_t k) {
  std::uint8_t row[kPanelWidth];
  unpack_codes(shape, codes, n / kPanelWidth, k, 1, row);
  return row[n % kPanelWidth];
}

}  // namespace graft::kernels
