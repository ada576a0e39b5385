#include "kernels/repack.h"

#include <algorithm>

#include "kernels/format.h"

namespace graft::awq {
namespace {

using kernels::kPanelWidth;
using kernels::kStep;
using kernels::PanelShape;

constexpr std::int64_t kPack = 8;  ///< outputs in a word

struct Source {
  const std::uint32_t* qweight;
  const PanelShape* shape;
  /// Words of input 0 in this panel, one or two.
  const std::uint32_t* words(std::int64_t panel) const {
    return qweight + panel * kPanelWidth / kPack;
  }
  std::int64_t stride() const { return shape->n / kPack; }
  std::int64_t count(std::int64_t panel) const {
    return std::min(kPanelWidth, shape->n - panel * kPanelWidth) / kPack;
  }
};

/// Nibble i of word j becomes nibble j of word i.
void transpose_nibbles(std::uint32_t (&w)[8]) {
  const auto exchange = [&](int distance, std::uint32_t mask) {
    for (int i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const std::uint32_t t = ((w[i] >> 4 * distance) ^ w[i + distance]) & mask;
      w[i + distance] ^= t;
      w[i] ^= t << 4 * distance;
    }
  };
  exchange(4, 0x0000FFFFU);
  exchange(2, 0x00FF00FFU);
  exchange(1, 0x0F0F0F0FU);
}

/// Eight inputs of eight outputs: their words, outputs side by side, become words of inputs.
void read_words(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                std::uint32_t* words) {
  const auto& at = *static_cast<const Source*>(self);
  const std::int64_t parts = at.count(panel), stride = at.stride();
  for (std::int64_t s = 0; s < count; ++s)
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::uint32_t* row = at.words(panel) + (first + s) * kStep * stride + part;
      std::uint32_t w[8];
      for (std::int64_t i = 0; i < 8; ++i) w[i] = row[i * stride];
      transpose_nibbles(w);
      for (std::int64_t j = 0; j < 8; ++j)
        words[s * kPanelWidth + part * kPack + j] = w[kGemmShift[j] / 4];
    }
}

void read_codes(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                std::uint8_t* codes) {
  const auto& at = *static_cast<const Source*>(self);
  for (std::int64_t i = 0; i < count; ++i)
    unpack_gemm(at.words(panel) + (first + i) * at.stride(), at.count(panel) * kPack,
                codes + i * kPanelWidth);
}

}  // namespace

void pack(const PanelShape& shape, const std::uint32_t* qweight, std::int64_t first,
          std::int64_t last, std::uint8_t* codes) {
  const Source source{qweight, &shape};
  if (shape.group % kStep == 0 && shape.k % kStep == 0)
    kernels::pack_words(shape, {&read_words, &source}, first, last, codes);
  else
    kernels::pack_panels(shape, {&read_codes, &source}, first, last, codes);
}

void unpack(const PanelShape& shape, const std::uint8_t* codes, std::int64_t first,
            std::int64_t last, std::uint32_t* words, std::int64_t stride) {
  std::uint8_t row[kPanelWidth];
  for (std::int64_t panel = first; panel < last; ++panel) {
    const std::int64_t width = std::min(kPanelWidth, shape.n - panel * kPanelWidth);
    std::uint32_t* column = words + (panel - first) * kPanelWidth / kPack;
    for (std::int64_t k = 0; k < shape.k; ++k) {
      kernels::unpack_codes(shape, codes, panel, k, 1, row);
      pack_gemm(row, width, column + k * stride);
    }
  }
}

}  // namespace graft::awq
