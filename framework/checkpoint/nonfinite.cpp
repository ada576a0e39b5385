#include "checkpoint/nonfinite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace graft {
namespace {

/// Elements whose bits under `mask` are all set. Blocks of a fixed size become vector code, and only
/// a block that has one is searched.
template <class Word>
std::optional<std::size_t> find(const unsigned char* data, std::size_t count, Word mask) {
  constexpr std::size_t kBlock = 256 / sizeof(Word);
  Word block[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t here = std::min(kBlock, count - begin);
    if (here < kBlock) std::fill(block, block + kBlock, Word{0});
    std::memcpy(block, data + begin * sizeof(Word), here * sizeof(Word));
    Word any = 0;
    for (std::size_t i = 0; i < kBlock; ++i)
      any = static_cast<Word>(any | ((block[i] & mask) == mask ? Word(~Word{0}) : Word{0}));
    if (!any) continue;
    for (std::size_t i = 0; i < here; ++i)
      if ((block[i] & mask) == mask) return begin + i;
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::size_t> first_nonfinite(Dtype dtype, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(data);
  switch (dtype) {
    case Dtype::F16:
      return find<std::uint16_t>(from, bytes / 2, 0x7C00);
    case Dtype::BF16:
      return find<std::uint16_t>(from, bytes / 2, 0x7F80);
    case Dtype::F32:
      return find<std::uint32_t>(from, bytes / 4, 0x7F800000U);
    case Dtype::F64:
      return find<std::uint64_t>(from, bytes / 8, 0x7FF0000000000000ULL);
    case Dtype::F8_E5M2:
      return find<std::uint8_t>(from, bytes, 0x7C);
    case Dtype::F8_E4M3:  // 0x7F and 0xFF are NaN; there is no infinity
      return find<std::uint8_t>(from, bytes, 0x7F);
    case Dtype::F8_E8M0:  // 0xFF is NaN
      return find<std::uint8_t>(from, bytes, 0xFF);
    default:
      return std::nullopt;
  }
}

}  // namespace graft
