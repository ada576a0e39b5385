#include "four_bit_panels.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "graft/pool.h"

namespace graft::bnb {
namespace {

using kernels::kPanelWidth;
using kernels::kStep;

/// Nibbles of each byte exchanged: a word has its first code in the lowest bits, bitsandbytes in
/// the high nibble.
std::uint32_t swap_nibbles(std::uint32_t bytes) {
  return (bytes >> 4 & 0x0F0F0F0FU) | (bytes & 0x0F0F0F0FU) << 4;
}

struct Bytes {
  const std::uint8_t* data;
  std::int64_t rows, row_bytes;
};

void read_words(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                std::uint32_t* words) {
  const auto& from = *static_cast<const Bytes*>(self);
  const std::int64_t width = std::min(kPanelWidth, from.rows - panel * kPanelWidth);
  for (std::int64_t j = 0; j < width; ++j) {
    const std::uint8_t* row =
        from.data + (panel * kPanelWidth + j) * from.row_bytes + first * kStep / 2;
    for (std::int64_t s = 0; s < count; ++s) {
      std::uint32_t word;
      std::memcpy(&word, row + 4 * s, 4);
      words[s * kPanelWidth + j] = swap_nibbles(word);
    }
  }
}

}  // namespace

std::int64_t panel_group(std::int64_t columns, std::int64_t blocksize) {
  const std::int64_t group = std::gcd(columns, blocksize);
  return group % kStep == 0 ? group : 0;
}

kernels::PanelTensors pack_blocks(const at::Tensor& bytes, const QuantState& state,
                                  std::int64_t rows, std::int64_t columns) {
  const auto shape = kernels::panel_shape(kernels::PanelKind::table4, rows, columns,
                                          panel_group(columns, state.blocksize));
  auto out = kernels::empty_panels(shape);
  out.table = state.table;
  out.scales = at::empty({shape.panels, shape.groups, kPanelWidth}, at::kFloat);
  const Bytes source{bytes.const_data_ptr<std::uint8_t>(), rows, columns / 2};
  auto* codes = out.codes.mutable_data_ptr<std::uint8_t>();
  auto* scales = out.scales.mutable_data_ptr<float>();
  const float* absmax = state.absmax.const_data_ptr<float>();
  const std::int64_t blocksize = state.blocksize;
  for_each_chunk(pool(), shape.panels, [&](std::int64_t panel) {
    kernels::pack_words(shape, {&read_words, &source}, panel, panel + 1, codes);
    for (std::int64_t g = 0; g < shape.groups; ++g)
      for (std::int64_t j = 0; j < kPanelWidth; ++j) {
        const std::int64_t row = panel * kPanelWidth + j;
        scales[(panel * shape.groups + g) * kPanelWidth + j] =
            row < rows ? absmax[(row * columns + g * shape.group) / blocksize] : 0.0F;
      }
  });
  return out;
}

void unpack_rows(const kernels::PanelTensors& panels, std::int64_t first, std::int64_t count,
                 std::uint8_t* bytes) {
  constexpr std::int64_t kRun = 64;
  const auto& shape = panels.shape;
  const auto* codes = panels.codes.const_data_ptr<std::uint8_t>();
  const std::int64_t row_bytes = shape.k / 2;
  std::uint32_t words[kRun * kPanelWidth];
  for (std::int64_t row = first; row < first + count; row += kPanelWidth) {
    const std::int64_t width = std::min(kPanelWidth, first + count - row);
    for (std::int64_t step = 0; step < shape.steps; step += kRun) {
      const std::int64_t steps = std::min(kRun, shape.steps - step);
      kernels::unpack_words(shape, codes, row / kPanelWidth, step, steps, words);
      for (std::int64_t j = 0; j < width; ++j) {
        std::uint8_t* out = bytes + (row - first + j) * row_bytes + step * kStep / 2;
        for (std::int64_t s = 0; s < steps; ++s) {
          const std::uint32_t word = swap_nibbles(words[s * kPanelWidth + j]);
          std::memcpy(out + 4 * s, &word, 4);
        }
      }
    }
  }
}

at::Tensor unpack_absmax(const kernels::PanelTensors& panels, std::int64_t blocksize) {
  const auto& shape = panels.shape;
  const float* scales = panels.scales.const_data_ptr<float>();
  const std::int64_t blocks = (shape.n * shape.k + blocksize - 1) / blocksize;
  auto out = at::empty({blocks}, at::kFloat);
  auto* absmax = out.mutable_data_ptr<float>();
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t row = block * blocksize / shape.k;
    const std::int64_t group = block * blocksize % shape.k / shape.group;
    absmax[block] =
        scales[(row / kPanelWidth * shape.groups + group) * kPanelWidth + row % kPanelWidth];
  }
  return out;
}

}  // namespace graft::bnb
