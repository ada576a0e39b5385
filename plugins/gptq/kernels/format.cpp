#include "kernels/format.h"

#include <algorithm>

namespace graft::gptq {
namespace {

/// A one in every field of a word; 3 bits have none.
constexpr std::uint32_t ones(int bits) {
  return bits == 2 ? 0x55555555U : bits == 4 ? 0x11111111U : 0x01010101U;
}

/// Adds `step` to every whole field of 3 bits, modulo 8.
void step_fields(std::uint32_t* words, std::int64_t word_count, unsigned step) {
  const std::int64_t fields = word_count * 32 / 3;
  for (std::int64_t i = 0; i < fields; ++i)
    put_field(words, 1, i, 3, (field(words, 1, i, 3) + step) & 7U);
}

}  // namespace

void put_field(std::uint32_t* words, std::int64_t stride, std::int64_t index, int bits,
               unsigned value) {
  const std::int64_t bit = index * bits, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  const std::uint32_t mask = (1U << bits) - 1U;
  value &= mask;
  words[word * stride] = (words[word * stride] & ~(mask << shift)) | (value << shift);
  if (shift + bits > 32) {
    std::uint32_t& next = words[(word + 1) * stride];
    next = (next & ~(mask >> (32 - shift))) | (value >> (32 - shift));
  }
}

void pack_fields(const std::uint8_t* values, std::int64_t count, std::int64_t streams,
                 std::int64_t stride, int bits, std::uint32_t* words) {
  for (std::int64_t word = 0; word < words_for(count, bits); ++word)
    for (std::int64_t s = 0; s < streams; ++s) words[word * stride + s] = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t bit = i * bits, word = bit / 32;
    const int shift = static_cast<int>(bit % 32);
    const std::uint8_t* from = values + i * stride;
    std::uint32_t* to = words + word * stride;
    for (std::int64_t s = 0; s < streams; ++s) to[s] |= std::uint32_t{from[s]} << shift;
    if (shift + bits > 32)
      for (std::int64_t s = 0; s < streams; ++s) to[stride + s] |= std::uint32_t{from[s]} >> (32 - shift);
  }
}

void unpack_fields(const std::uint32_t* words, std::int64_t count, std::int64_t streams,
                   std::int64_t stride, int bits, std::uint8_t* values) {
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t s = 0; s < streams; ++s)
      values[i * stride + s] = static_cast<std::uint8_t>(field(words + s, stride, i, bits));
}

void decode_zeros(const std::uint32_t* words, std::int64_t count, int bits, ZeroRule rule,
                  std::uint16_t* zeros) {
  const unsigned mask = (1U << bits) - 1U;
  if (rule == ZeroRule::borrowed && bits != 3) {
    const std::int64_t in_word = 32 / bits;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t word = words[i / in_word] + ones(bits);
      zeros[i] = static_cast<std::uint16_t>((word >> (i % in_word * bits)) & mask);
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    unsigned zero = field(words, 1, i, bits);
    if (rule != ZeroRule::plain) ++zero;
    if (rule == ZeroRule::borrowed) zero &= mask;
    zeros[i] = static_cast<std::uint16_t>(zero);
  }
}

void to_plain(std::uint32_t* words, std::int64_t word_count, int bits) {
  if (bits == 3) return step_fields(words, word_count, 1);
  for (std::int64_t i = 0; i < word_count; ++i) words[i] += ones(bits);
}

void to_borrowed(std::uint32_t* words, std::int64_t word_count, int bits) {
  if (bits == 3) return step_fields(words, word_count, 7);
  for (std::int64_t i = 0; i < word_count; ++i) words[i] -= ones(bits);
}

GroupIndex classify(const std::int32_t* g_idx, std::int64_t inputs, std::int64_t group_size,
                    std::int64_t groups, std::int64_t* counts) {
  using Kind = GroupIndex::Kind;
  bool in_order = true, rows = true, negative = false;
  GroupIndex found;
  std::fill(counts, counts + groups, 0);
  std::int64_t first_bad = -1, first_negative = -1;
  for (std::int64_t k = 0; k < inputs; ++k) {
    const std::int64_t g = g_idx[k];
    in_order = in_order && g == k / group_size;
    rows = rows && g == k;
    const std::int64_t group = g < 0 ? g + groups : g;
    if (group < 0 || group >= groups) {
      if (first_bad < 0) first_bad = k;
    } else {
      ++counts[group];
    }
    if (g < 0 && first_negative < 0) first_negative = k;
    negative = negative || g < 0;
  }
  if (in_order) return found;
  if (rows && inputs > 1) {
    found.kind = Kind::rows;
  } else if (first_bad >= 0 || negative) {
    found.kind = first_bad >= 0 ? Kind::out_of_range : Kind::negative;
    found.position = first_bad >= 0 ? first_bad : first_negative;
    found.value = g_idx[found.position];
  } else {
    // One group is short when group_size does not divide the inputs; which one is the writer's
    // choice, because rows were ordered before they were grouped.
    std::int64_t full = 0, short_ones = 0;
    for (std::int64_t g = 0; g < groups; ++g) {
      full += counts[g] == group_size;
      short_ones += counts[g] == inputs - (groups - 1) * group_size;
    }
    const bool divides = inputs == groups * group_size;
    const bool genuine = divides ? full == groups : full == groups - 1 && short_ones == 1;
    found.kind = genuine ? Kind::genuine : Kind::uneven;
  }
  return found;
}

}  // namespace graft::gptq
