#include "kernels/format.h"

#include <algorithm>

namespace graft::awq {
namespace {

/// The place of field `p` of word `t` in a GEMVFast block of 4 outputs and 64 inputs.
struct Place {
  std::int64_t output, input;
};

Place gemv_fast_place(std::int64_t t, std::int64_t p) {
  const std::int64_t f = 4 * t + p, c = f % 64, u = c % 32;
  return {f / 64, c / 32 * 32 + 8 * (u % 4) + 2 * (u / 8) + u % 8 / 4};
}

/// Calls take(word, shift, code index) for every field of a GEMVFast matrix.
template <class Take>
void for_each_fast_field(std::int64_t inputs, std::int64_t outputs, const Take& take) {
  for (std::int64_t t = 0; t < 64; ++t)
    for (std::int64_t p = 0; p < 4; ++p) {
      const Place place = gemv_fast_place(t, p);
      for (std::int64_t row = 0; row < outputs / 4; ++row)
        for (std::int64_t block = 0; block < inputs / 64; ++block)
          take(row * inputs + 64 * block + t, static_cast<int>(4 * p),
               (64 * block + place.input) * outputs + 4 * row + place.output);
    }
}

}  // namespace

void unpack_gemm(const std::uint32_t* words, std::int64_t count, std::uint8_t* codes) {
  for (std::int64_t n = 0; n < count; ++n)
    codes[n] = static_cast<std::uint8_t>((words[n / 8] >> kGemmShift[n % 8]) & 15U);
}

void pack_gemm(const std::uint8_t* codes, std::int64_t count, std::uint32_t* words) {
  for (std::int64_t c = 0; c < count / 8; ++c) {
    std::uint32_t word = 0;
    for (std::int64_t j = 0; j < 8; ++j)
      word |= static_cast<std::uint32_t>(codes[8 * c + j] & 15U) << kGemmShift[j];
    words[c] = word;
  }
}

void unpack_gemv(const std::uint32_t* words, std::int64_t inputs, std::int64_t outputs,
                 std::uint8_t* codes) {
  for (std::int64_t n = 0; n < outputs; ++n)
    for (std::int64_t k = 0; k < inputs; ++k)
      codes[k * outputs + n] =
          static_cast<std::uint8_t>((words[n * (inputs / 8) + k / 8] >> (4 * (k % 8))) & 15U);
}

void pack_gemv(const std::uint8_t* codes, std::int64_t inputs, std::int64_t outputs,
               std::uint32_t* words) {
  for (std::int64_t n = 0; n < outputs; ++n)
    for (std::int64_t c = 0; c < inputs / 8; ++c) {
      std::uint32_t word = 0;
      for (std::int64_t p = 0; p < 8; ++p)
        word |= static_cast<std::uint32_t>(codes[(8 * c + p) * outputs + n] & 15U) << (4 * p);
      words[n * (inputs / 8) + c] = word;
    }
}

void unpack_gemv_fast(const std::uint16_t* words, std::int64_t inputs, std::int64_t outputs,
                      std::uint8_t* codes) {
  for_each_fast_field(inputs, outputs, [&](std::int64_t word, int shift, std::int64_t code) {
    codes[code] = static_cast<std::uint8_t>((words[word] >> shift) & 15U);
  });
}

void pack_gemv_fast(const std::uint8_t* codes, std::int64_t inputs, std::int64_t outputs,
                    std::uint16_t* words) {
  std::fill(words, words + outputs / 4 * inputs, std::uint16_t{0});
  for_each_fast_field(inputs, outputs, [&](std::int64_t word, int shift, std::int64_t code) {
    words[word] = static_cast<std::uint16_t>(words[word] | (codes[code] & 15U) << shift);
  });
}

std::int64_t gemv_zero_words(std::int64_t groups, std::int64_t group_size) {
  const std::int64_t step = group_size >= 128 ? 1 : group_size == 64 ? 2 : group_size == 32 ? 4 : 0;
  if (step == 0) return 0;
  const std::int64_t words = (groups + 7) / 8;
  return (words + step - 1) / step * step;
}

}  // namespace graft::awq
