#include "checkpoint/nonfinite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace graft {
namespace {

/// The first element whose bits under `mask` are all set. Blocks of a fixed size become vector
/// code, and only a block that has one is searched.
template <class Word>
std::optional<std::size_t> find(const unsigned char* data, std::size_t count, Word mask) {
  const auto is_set = [&](std::size_t i) {
    Word word;
    std::memcpy(&word, data + i * sizeof(Word), sizeof(Word));
    return (word & mask) == mask;
  };
  constexpr std::size_t kBlock = 4096 / sizeof(Word);
  std::size_t begin = 0;
  for (; begin + kBlock <= count; begin += kBlock) {
    Word any = 0;
    for (std::size_t i = begin; i < begin + kBlock; ++i)
      any = static_cast<Word>(any | (is_set(i) ? Word(~Word{0}) : Word{0}));
    if (any) break;
  }
  for (; begin < count; ++begin)
    if (is_set(begin)) return begin;
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
