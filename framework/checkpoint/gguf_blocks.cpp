#include "checkpoint/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace graft {
namespace {

std::uint8_t byte_at(const std::byte* p) { return std::to_integer<std::uint8_t>(*p); }

float half_at(const std::byte* p) {
  return float_of_half(static_cast<std::uint16_t>(byte_at(p) | byte_at(p + 1) << 8));
}

std::uint32_t word_at(const std::byte* p) {
  return byte_at(p) | static_cast<std::uint32_t>(byte_at(p + 1)) << 8 |
         static_cast<std::uint32_t>(byte_at(p + 2)) << 16 |
         static_cast<std::uint32_t>(byte_at(p + 3)) << 24;
}

float as_float(int value) { return static_cast<float>(value); }

void f32(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) out[i] = std::bit_cast<float>(word_at(in + 4 * i));
}

void f16(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (std::uint64_t i = 0; i < count; ++i) out[i] = half_at(in + 2 * i);
}

void bf16(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (std::uint64_t i = 0; i < count; ++i)
    out[i] = std::bit_cast<float>(
        static_cast<std::uint32_t>(byte_at(in + 2 * i) | byte_at(in + 2 * i + 1) << 8) << 16);
}

// Blocks of 32: scale d, perhaps a minimum m, perhaps the fifth bits, then nibbles, where byte j
// holds elements j (low) and j + 16 (high).

void q4_0(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 18, out += 32) {
    const float d = half_at(in);
    for (int j = 0; j < 16; ++j) {
      const int both = byte_at(in + 2 + j);
      out[j] = d * as_float((both & 15) - 8);
      out[j + 16] = d * as_float((both >> 4) - 8);
    }
  }
}

void q4_1(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 20, out += 32) {
    const float d = half_at(in), m = half_at(in + 2);
    for (int j = 0; j < 16; ++j) {
      const int both = byte_at(in + 4 + j);
      out[j] = d * as_float(both & 15) + m;
      out[j + 16] = d * as_float(both >> 4) + m;
    }
  }
}

/// Elements j and j + 16 of the five-bit codes, whose high bits are bits j and j + 16 of `high`.
std::array<int, 2> five_bits(int both, std::uint32_t high, int j) {
  return {(both & 15) | static_cast<int>(high >> j & 1) << 4,
          (both >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4};
}

void q5_0(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 22, out += 32) {
    const float d = half_at(in);
    const std::uint32_t high = word_at(in + 2);
    for (int j = 0; j < 16; ++j) {
      const auto [a, b] = five_bits(byte_at(in + 6 + j), high, j);
      out[j] = d * as_float(a - 16);
      out[j + 16] = d * as_float(b - 16);
    }
  }
}

void q5_1(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 24, out += 32) {
    const float d = half_at(in), m = half_at(in + 2);
    const std::uint32_t high = word_at(in + 4);
    for (int j = 0; j < 16; ++j) {
      const auto [a, b] = five_bits(byte_at(in + 8 + j), high, j);
      out[j] = d * as_float(a) + m;
      out[j + 16] = d * as_float(b) + m;
    }
  }
}

void q8_0(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 34, out += 32) {
    const float d = half_at(in);
    for (int j = 0; j < 32; ++j)
      out[j] = d * as_float(static_cast<std::int8_t>(byte_at(in + 2 + j)));
  }
}

// The K formats: superblocks of 256 with a scale of scales.

/// Six-bit scale and minimum of the eight blocks of 32 of a superblock, from 12 bytes: the first
/// four of each lie in bytes 0-3 and 4-7; the others take their low nibbles from bytes 8-11 and
/// their two high bits from the tops of bytes 0-7.
struct ScalesAndMinima {
  int scale[8], minimum[8];

  explicit ScalesAndMinima(const std::byte* in) {
    for (int j = 0; j < 4; ++j) {
      const int s = byte_at(in + j), m = byte_at(in + 4 + j), low = byte_at(in + 8 + j);
      scale[j] = s & 63;
      minimum[j] = m & 63;
      scale[j + 4] = (low & 15) | (s >> 6) << 4;
      minimum[j + 4] = (low >> 4) | (m >> 6) << 4;
    }
  }
};

/// Q4_K, and with `high_bits` Q5_K: d, dmin, scales, (32 bytes of fifth bits,) 128 bytes of nibbles
/// in four runs of 32, each the low nibbles of one block and the high ones of the next.
void nibbles_k(const std::byte* in, bool high_bits, float* out) noexcept {
  const float d = half_at(in), dmin = half_at(in + 2);
  const ScalesAndMinima packed(in + 4);
  const std::byte* high = in + 16;
  const std::byte* low = in + 16 + (high_bits ? 32 : 0);
  for (int block = 0; block < 8; ++block, out += 32) {
    const float scale = d * as_float(packed.scale[block]);
    const float minimum = dmin * as_float(packed.minimum[block]);
    for (int j = 0; j < 32; ++j) {
      int code = byte_at(low + block / 2 * 32 + j) >> (block % 2 * 4) & 15;
      if (high_bits) code |= (byte_at(high + j) >> block & 1) << 4;
      out[j] = scale * as_float(code) - minimum;
    }
  }
}

void q4_k(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 144, out += 256) nibbles_k(in, false, out);
}

void q5_k(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 176, out += 256) nibbles_k(in, true, out);
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d. Each half of 128 elements
/// has four runs of 32: nibbles low, low, high, high of 64 bytes, and bit pairs 0 to 3 of 32 bytes.
void q6_k(const std::byte* in, std::uint64_t count, float* out) noexcept {
  for (; count > 0; --count, in += 210, out += 256) {
    const float d = half_at(in + 208);
    for (int block = 0; block < 8; ++block) {
      const int half = block / 4, run = block % 4;
      for (int j = 0; j < 32; ++j) {
        const int low = byte_at(in + half * 64 + run % 2 * 32 + j) >> (run / 2 * 4) & 15;
        const int high = byte_at(in + 128 + half * 32 + j) >> (run * 2) & 3;
        const int element = block * 32 + j;
        const auto scale = static_cast<std::int8_t>(byte_at(in + 192 + element / 16));
        out[element] = d * as_float(scale) * as_float((low | high << 4) - 32);
      }
    }
  }
}

constexpr std::array<BlockFormat, 34> kFormats{{
    {0, "F32", 1, 4, f32},         {1, "F16", 1, 2, f16},          {2, "Q4_0", 32, 18, q4_0},
    {3, "Q4_1", 32, 20, q4_1},     {6, "Q5_0", 32, 22, q5_0},      {7, "Q5_1", 32, 24, q5_1},
    {8, "Q8_0", 32, 34, q8_0},     {9, "Q8_1", 0, 0, nullptr},     {10, "Q2_K", 0, 0, nullptr},
    {11, "Q3_K", 0, 0, nullptr},   {12, "Q4_K", 256, 144, q4_k},   {13, "Q5_K", 256, 176, q5_k},
    {14, "Q6_K", 256, 210, q6_k},  {15, "Q8_K", 0, 0, nullptr},    {16, "IQ2_XXS", 0, 0, nullptr},
    {17, "IQ2_XS", 0, 0, nullptr}, {18, "IQ3_XXS", 0, 0, nullptr}, {19, "IQ1_S", 0, 0, nullptr},
    {20, "IQ4_NL", 0, 0, nullptr}, {21, "IQ3_S", 0, 0, nullptr},   {22, "IQ2_S", 0, 0, nullptr},
    {23, "IQ4_XS", 0, 0, nullptr}, {24, "I8", 0, 0, nullptr},      {25, "I16", 0, 0, nullptr},
    {26, "I32", 0, 0, nullptr},    {27, "I64", 0, 0, nullptr},     {28, "F64", 0, 0, nullptr},
    {29, "IQ1_M", 0, 0, nullptr},  {30, "BF16", 1, 2, bf16},       {34, "TQ1_0", 0, 0, nullptr},
    {35, "TQ2_0", 0, 0, nullptr},  {39, "MXFP4", 0, 0, nullptr},   {40, "NVFP4", 0, 0, nullptr},
    {41, "Q1_0", 0, 0, nullptr},
}};

}  // namespace

const BlockFormat* block_format(std::uint32_t id) {
  const auto* found = std::find_if(kFormats.begin(), kFormats.end(),
                                   [id](const BlockFormat& format) { return format.id == id; });
  return found == kFormats.end() ? nullptr : found;
}

std::string readable_block_formats() {
  std::string out;
  for (const auto& format : kFormats)
    if (format.dequantize) out += (out.empty() ? "" : ", ") + std::string(format.name);
  return out;
}

float float_of_half(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31;
  const std::uint32_t fraction = bits & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
  if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // subnormal: exact
  return sign ? -magnitude : magnitude;
}

std::uint16_t half_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  // 65520 and more round to infinity.
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {
    // Adding 0.5 puts the last bit of a float16 subnormal into the last bit of the float, so that
    // the addition does the rounding.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u));
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
  return static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

std::uint16_t bfloat16_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

}  // namespace graft
