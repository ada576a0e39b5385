#pragma once

#include <cstdint>

// GPTQ's packed integers: a contiguous little-endian stream of `bits`-wide fields over 32-bit words,
// lowest bits first, for 2, 3, 4 and 8 bits alike (fields of 3 bits straddle words). qweight packs
// along the inputs, one stream for each output in words a row apart; qzeros packs along the outputs,
// one stream for each group. Layout: AutoGPTQ and GPTQModel. Any thread; nothing is allocated.

namespace graft::gptq {

/// Words that hold `count` fields.
constexpr std::int64_t words_for(std::int64_t count, int bits) { return (count * bits + 31) / 32; }

/// Field `index` of the stream whose words lie `stride` apart.
inline unsigned field(const std::uint32_t* words, std::int64_t stride, std::int64_t index,
                      int bits) {
  const std::int64_t bit = index * bits, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  std::uint32_t value = words[word * stride] >> shift;
  if (shift + bits > 32) value |= words[(word + 1) * stride] << (32 - shift);
  return value & ((1U << bits) - 1U);
}

/// Sets a field; its bits are replaced.
void put_field(std::uint32_t* words, std::int64_t stride, std::int64_t index, int bits,
               unsigned value);

/// Streams of `count` fields, each from bytes `stride` apart, as words `stride` apart, `streams` of
/// both side by side: what pads the last words is zero.
void pack_fields(const std::uint8_t* values, std::int64_t count, std::int64_t streams,
                 std::int64_t stride, int bits, std::uint32_t* words);

/// The way back.
void unpack_fields(const std::uint32_t* words, std::int64_t count, std::int64_t streams,
                   std::int64_t stride, int bits, std::uint8_t* values);

/// How a field of qzeros stands for the zero point z.
enum class ZeroRule {
  plain,     ///< z: checkpoint_format gptq_v2
  borrowed,  ///< z - 1, subtracted from the whole word at 2, 4 and 8 bits, so that z = 0 borrows
             ///< from the next field; from each field modulo 8 at 3 bits. GPTQModel's gptq (v1)
  unmasked,  ///< z - 1, and all ones mean 2^bits: AutoGPTQ's run time
};

/// The zero points of one row of qzeros, `count` of them.
void decode_zeros(const std::uint32_t* words, std::int64_t count, int bits, ZeroRule rule,
                  std::uint16_t* zeros);

/// A row of `word_count` words from borrowed to plain, or back, in place. Every field changes, those
/// behind the last output too, so that the way back gives the same words.
void to_plain(std::uint32_t* words, std::int64_t word_count, int bits);
void to_borrowed(std::uint32_t* words, std::int64_t word_count, int bits);

/// What a g_idx holds.
struct GroupIndex {
  enum class Kind {
    in_order,      ///< k / group_size
    genuine,       ///< another order, with the right number of rows in each group
    uneven,        ///< in range, but groups have other numbers of rows: left by a writer
    rows,          ///< 0, 1, 2, ...: left by a writer that never made one
    negative,      ///< in range when the number of groups is added to negative entries
    out_of_range,  ///< an index that no group has
  };
  Kind kind = Kind::in_order;
  std::int64_t position = 0;  ///< of the first negative or out-of-range entry
  std::int64_t value = 0;     ///< that entry
};

/// `g_idx` has `inputs` entries, `groups` = ceil(inputs / group_size). `counts` is scratch for
/// `groups` numbers.
GroupIndex classify(const std::int32_t* g_idx, std::int64_t inputs, std::int64_t group_size,
                    std::int64_t groups, std::int64_t* counts);

}  // namespace graft::gptq
