#include "kernels/repack.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernels/format.h"

namespace graft::gptq {
namespace {

using kernels::kPanelWidth;
using kernels::PanelShape;

struct Source {
  const PackedWords* from;
  const PanelShape* shape;
  std::int64_t width(std::int64_t panel) const {
    return std::min(kPanelWidth, shape->n - panel * kPanelWidth);
  }
};

/// Words of 4-bit codes in order are words of a panel.
void read_words(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                std::uint32_t* words) {
  const auto& at = *static_cast<const Source*>(self);
  const std::uint32_t* row = at.from->words + first * at.from->stride + panel * kPanelWidth;
  const auto bytes = static_cast<std::size_t>(at.width(panel)) * sizeof(std::uint32_t);
  for (std::int64_t s = 0; s < count; ++s, row += at.from->stride, words += kPanelWidth)
    std::memcpy(words, row, bytes);
}

void read_codes(const void* self, std::int64_t panel, std::int64_t first, std::int64_t count,
                std::uint8_t* codes) {
  const auto& at = *static_cast<const Source*>(self);
  const std::int64_t width = at.width(panel), bits = at.from->bits;
  const std::int64_t stride = at.from->stride;
  const auto mask = static_cast<std::uint32_t>((1 << bits) - 1);
  for (std::int64_t i = first; i < first + count; ++i, codes += kPanelWidth) {
    const std::int64_t k = at.from->order ? at.from->order[i] : i;
    const std::int64_t bit = k * bits, shift = bit % 32;
    const std::uint32_t* low = at.from->words + bit / 32 * stride + panel * kPanelWidth;
    const std::uint32_t* high = shift + bits > 32 ? low + stride : low;
    for (std::int64_t j = 0; j < width; ++j) {
      const std::uint64_t both = static_cast<std::uint64_t>(high[j]) << 32 | low[j];
      codes[j] = static_cast<std::uint8_t>((both >> shift) & mask);
    }
  }
}

/// Whether a panel's words are those of the file.
bool keeps_words(const PanelShape& shape, const PackedWords& words) {
  return words.bits == 4 && !words.order && shape.group % kernels::kStep == 0;
}

}  // namespace

Sorting sort_by_group(const std::int32_t* group, std::int64_t inputs, std::int64_t group_size) {
  const std::int64_t groups = (inputs + group_size - 1) / group_size;
  const std::int64_t rest = inputs - (groups - 1) * group_size;
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(groups));
  for (std::int64_t k = 0; k < inputs; ++k) ++sizes[static_cast<std::size_t>(group[k])];
  Sorting out;
  out.groups.resize(sizes.size());
  std::iota(out.groups.begin(), out.groups.end(), 0);
  std::stable_partition(out.groups.begin(), out.groups.end(), [&](std::int32_t g) {
    return sizes[static_cast<std::size_t>(g)] == group_size;
  });
  out.even = sizes[static_cast<std::size_t>(out.groups.back())] == rest &&
             std::count(sizes.begin(), sizes.end(), group_size) >= groups - 1;
  if (!out.even) return out;
  std::vector<std::int64_t> place(sizes.size());
  for (std::int64_t p = 0; p < groups; ++p)
    place[static_cast<std::size_t>(out.groups[static_cast<std::size_t>(p)])] = p * group_size;
  out.order.resize(static_cast<std::size_t>(inputs));
  for (std::int64_t k = 0; k < inputs; ++k)
    out.order[static_cast<std::size_t>(place[static_cast<std::size_t>(group[k])]++)] =
        static_cast<std::int32_t>(k);
  if (std::is_sorted(out.order.begin(), out.order.end()) &&
      std::is_sorted(out.groups.begin(), out.groups.end()))
    out.order.clear();
  return out;
}

void pack(const PanelShape& shape, const PackedWords& from, std::int64_t first, std::int64_t last,
          std::uint8_t* codes) {
  const Source source{&from, &shape};
  if (keeps_words(shape, from))
    kernels::pack_words(shape, {&read_words, &source}, first, last, codes);
  else
    kernels::pack_panels(shape, {&read_codes, &source}, first, last, codes);
}

void unpack(const PanelShape& shape, const std::uint8_t* codes, std::int64_t first,
            std::int64_t last, const PackedWords& to) {
  constexpr std::int64_t kRun = 128;
  for (std::int64_t panel = first; panel < last; ++panel) {
    const std::int64_t width = std::min(kPanelWidth, shape.n - panel * kPanelWidth);
    std::uint32_t* column = to.words + (panel - first) * kPanelWidth;
    if (keeps_words(shape, to)) {
      std::uint32_t words[kRun * kPanelWidth];
      for (std::int64_t step = 0; step < shape.steps; step += kRun) {
        const std::int64_t count = std::min(kRun, shape.steps - step);
        kernels::unpack_words(shape, codes, panel, step, count, words);
        for (std::int64_t s = 0; s < count; ++s)
          std::memcpy(column + (step + s) * to.stride, words + s * kPanelWidth,
                      static_cast<std::size_t>(width) * sizeof(std::uint32_t));
      }
      continue;
    }
    std::uint8_t wide[kRun * kPanelWidth];
    for (std::int64_t k = 0; k < shape.k; k += kRun) {
      const std::int64_t count = std::min(kRun, shape.k - k);
      kernels::unpack_codes(shape, codes, panel, k, count, wide);
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t j = 0; j < width; ++j)
          put_field(column + j, to.stride, to.order ? to.order[k + i] : k + i, to.bits,
                    wide[i * kPanelWidth + j]);
    }
  }
}

}  // namespace graft::gptq
