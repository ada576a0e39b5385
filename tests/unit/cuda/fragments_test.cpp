#include "cuda/fragments.h"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <random>
#include <set>
#include <utility>
#include <vector>

using namespace graft::cuda;

namespace {

struct Size {
  std::int64_t n, k, group;
};
constexpr Size kSizes[] = {{8, 8, 8},       {16, 64, 32},    {64, 128, 64},  {72, 136, 32},
                           {120, 192, 128}, {8, 1024, 1024}, {200, 72, 32},  {64, 320, 256},
                           {136, 200, 512}, {256, 384, 128}, {1000, 88, 64}};
constexpr CodeKind kKinds[] = {CodeKind::int4, CodeKind::table4};

// The fragments of mma.m16n8k16 with 16-bit numbers, from PTX ISA, "Matrix fragments for
// mma.m16n8k16 with floating point type": where element i of a lane's registers is.
struct Element {
  int row, column;
};
constexpr Element left(int lane, int i) {  // A [16][16], i: two of each of four registers
  const int reg = i / 2;
  return {lane / 4 + reg % 2 * 8, lane % 4 * 2 + i % 2 + reg / 2 * 8};
}
constexpr Element right(int lane, int i) {  // B [16][8], two of each of two registers
  return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}
constexpr Element result(int lane, int i) {  // C [16][8]
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

using Left = std::array<std::array<double, 8>, 32>;  // [lane][i]
using Right = std::array<std::array<double, 4>, 32>;
using Result = std::array<std::array<double, 4>, 32>;

/// C += A B, by all lanes of a warp at once.
void mma(Result& c, const Left& a, const Right& b) {
  double whole_a[16][16], whole_b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i)
      whole_a[left(lane, i).row][left(lane, i).column] = a[lane][i];
    for (int i = 0; i < 4; ++i)
      whole_b[right(lane, i).row][right(lane, i).column] = b[lane][i];
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k)
        c[lane][i] += whole_a[result(lane, i).row][k] * whole_b[k][result(lane, i).column];
}

struct Weight {
  FragmentShape shape;
  std::vector<std::uint32_t> codes, words;
  std::array<double, 16> table;
  std::vector<double> dense;  // [n][k]
};

/// Of whole numbers, so that sums are exact. int4: scales up to 7, zero points up to 16.
Weight random_weight(CodeKind kind, const Size& size, std::mt19937& random) {
  const auto below = [&](unsigned limit) { return static_cast<std::uint32_t>(random() % limit); };
  Weight w;
  w.shape = fragment_shape(kind, size.n, size.k, size.group);
  const auto& shape = w.shape;
  for (auto& value : w.table) value = static_cast<double>(below(255)) - 127;
  // Codes of the padding are anything.
  w.codes.resize(static_cast<std::size_t>(shape.code_bytes / 4));
  for (auto& word : w.codes) word = static_cast<std::uint32_t>(random());
  w.words.resize(static_cast<std::size_t>(shape.word_count));
  for (std::int64_t n = 0; n < shape.n; ++n)
    for (std::int64_t group = 0; group * shape.group < shape.k; ++group)
      w.words[word_place(shape, n, group)] =
          kind == CodeKind::int4 ? (1 + below(7)) | below(17) << 16 : 1 + below(7);
  w.dense.resize(static_cast<std::size_t>(size.n * size.k));
  for (std::int64_t n = 0; n < shape.n; ++n)
    for (std::int64_t k = 0; k < shape.k; ++k) {
      const std::uint32_t code = below(16);
      const std::uint32_t word = w.words[word_place(shape, n, k >> shape.group_shift)];
      const auto place = code_place(shape, n, k);
      w.codes[place.word] = (w.codes[place.word] & ~(15u << place.shift)) | code << place.shift;
      w.dense[n * size.k + k] =
          kind == CodeKind::int4
              ? (static_cast<double>(code) - static_cast<double>(word >> 16)) * (word & 0xFFFF)
              : w.table[code] * word;
    }
  return w;
}

/// W x as a warp computes it: a lane reads 16 bytes of a tile's codes and two words of scales and
/// zero points. x [8][k], result [8][n].
std::vector<double> multiply_by_lanes(const Weight& w, const std::vector<double>& x) {
  const auto& s = w.shape;
  std::vector<double> out(static_cast<std::size_t>(8 * s.n));
  for (std::int64_t band = 0; band < s.bands; ++band)
    for (std::int64_t tile = 0; tile < 4; ++tile) {
      Result sums{};
      for (std::int64_t step = 0; step < s.steps; ++step) {
        const std::uint32_t* at = w.codes.data() + ((band * s.steps + step) * 4 + tile) * 128;
        for (int word = 0; word < 4; ++word) {
          const std::int64_t input = step * 64 + word * 16;
          Left a;
          Right b;
          for (int lane = 0; lane < 32; ++lane) {
            const std::uint32_t codes = at[lane * 4 + word];
            const std::int64_t group = input >> s.group_shift;
            const std::uint32_t* pair =
                w.words.data() + (band * s.groups + group) * 64 + tile * 16 + lane / 4 * 2;
            for (int i = 0; i < 8; ++i) {
              const int reg = i / 2, high = i % 2;
              const std::uint32_t scale = pair[reg % 2];
              if (s.kind == CodeKind::int4) {
                const std::uint32_t both = codes >> (4 * reg) & 0x000F000F;
                const std::uint32_t code = high ? both >> 16 : both & 0xFFFF;
                a[lane][i] = (static_cast<double>(code) - static_cast<double>(scale >> 16)) *
                             (scale & 0xFFFF);
              } else {
                const std::uint32_t byte = codes >> (8 * reg) & 0xFF;
                a[lane][i] = w.table[high ? byte >> 4 : byte & 15] * scale;
              }
            }
            for (int i = 0; i < 4; ++i) {
              const auto place = right(lane, i);
              b[lane][i] = input + place.row < s.k ? x[place.column * s.k + input + place.row] : 0;
            }
          }
          mma(sums, a, b);
        }
      }
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          // A lane's two rows are neighbours in the result.
          const std::int64_t n = band * 64 + tile * 16 + lane / 4 * 2 + i / 2;
          if (n < s.n) out[(lane % 4 * 2 + i % 2) * s.n + n] = sums[lane][i];
        }
    }
  return out;
}

}  // namespace

TEST_CASE("every code of a weight has a place of its own, and what is left is the padding") {
  for (const auto kind : kKinds)
    for (const auto& size : kSizes) {
      CAPTURE(size.n);
      CAPTURE(size.k);
      const auto shape = fragment_shape(kind, size.n, size.k, size.group);
      std::vector<int> taken(static_cast<std::size_t>(shape.code_bytes * 2));
      bool inside = true;
      const auto take = [&](std::int64_t n, std::int64_t k) {
        const auto place = code_place(shape, n, k);
        const bool fits = place.word >= 0 && place.word < shape.code_bytes / 4 &&
                          place.shift >= 0 && place.shift <= 28 && place.shift % 4 == 0;
        inside = inside && fits;
        if (fits) ++taken[place.word * 8 + place.shift / 4];
      };
      for (std::int64_t n = 0; n < shape.n; ++n)
        for (std::int64_t k = 0; k < shape.k; ++k) take(n, k);
      REQUIRE(inside);
      std::int64_t once = 0, free = 0;
      for (const int count : taken) {
        once += count == 1;
        free += count == 0;
      }
      CHECK(once == size.n * size.k);
      CHECK(free == shape.bands * 64 * shape.steps * 64 - size.n * size.k);
      // The padding's own places fill what is free.
      for (std::int64_t n = 0; n < shape.bands * 64; ++n)
        for (std::int64_t k = 0; k < shape.steps * 64; ++k)
          if (n >= shape.n || k >= shape.k) take(n, k);
      REQUIRE(inside);
      CHECK(taken == std::vector<int>(taken.size(), 1));
    }
}

TEST_CASE("a scale of every output and group has a place of its own") {
  for (const auto kind : kKinds)
    for (const auto& size : kSizes) {
      CAPTURE(size.n);
      CAPTURE(size.k);
      const auto shape = fragment_shape(kind, size.n, size.k, size.group);
      std::vector<int> taken(static_cast<std::size_t>(shape.word_count));
      for (std::int64_t n = 0; n < shape.bands * 64; ++n)
        for (std::int64_t group = 0; group < shape.groups; ++group) {
          const auto place = word_place(shape, n, group);
          REQUIRE(place >= 0);
          REQUIRE(place < shape.word_count);
          ++taken[place];
        }
      CHECK(taken == std::vector<int>(taken.size(), 1));
    }
}

TEST_CASE("every input has a group, the padded ones too") {
  for (const auto& size : kSizes) {
    const auto shape = fragment_shape(CodeKind::int4, size.n, size.k, size.group);
    for (std::int64_t k = 0; k < shape.steps * 64; ++k) {
      const auto group = k >> shape.group_shift;
      REQUIRE(group < shape.groups);
      if (k < size.k) REQUIRE(group == k / size.group);
    }
  }
}

TEST_CASE("lanes that read their 16 bytes and multiply with mma compute W x") {
  std::mt19937 random(1);
  for (const auto kind : kKinds)
    for (const auto& size : kSizes) {
      CAPTURE(size.n);
      CAPTURE(size.k);
      CAPTURE(size.group);
      const auto w = random_weight(kind, size, random);
      std::vector<double> x(static_cast<std::size_t>(8 * size.k));
      for (auto& value : x) value = static_cast<double>(random() % 21) - 10;
      std::vector<double> expected(static_cast<std::size_t>(8 * size.n));
      for (std::int64_t row = 0; row < 8; ++row)
        for (std::int64_t n = 0; n < size.n; ++n)
          for (std::int64_t k = 0; k < size.k; ++k)
            expected[row * size.n + n] += w.dense[n * size.k + k] * x[row * size.k + k];
      CHECK(multiply_by_lanes(w, x) == expected);
    }
}

TEST_CASE("a tile of codes is one piece of 512 bytes, all of them in use") {
  const auto shape = fragment_shape(CodeKind::int4, 128, 256, 128);
  std::set<std::int64_t> words;
  for (std::int64_t n = 64; n < 80; ++n)
    for (std::int64_t k = 128; k < 192; ++k) words.insert(code_place(shape, n, k).word);
  CHECK(words.size() == 128);
  CHECK(*words.rbegin() - *words.begin() == 127);
  CHECK(*words.begin() % 128 == 0);
}

TEST_CASE("sides of weights are multiples of 8, groups are powers of two from 32 on, or one") {
  CHECK(fits_fragments(8, 8, 8));
  CHECK(fits_fragments(4096, 11008, 128));
  CHECK(fits_fragments(64, 96, 96));  // one group
  CHECK(fits_fragments(64, 96, 1024));
  CHECK(fits_fragments(64, 96, 32));
  CHECK_FALSE(fits_fragments(64, 96, 16));
  CHECK_FALSE(fits_fragments(64, 960, 96));
  CHECK_FALSE(fits_fragments(60, 64, 32));
  CHECK_FALSE(fits_fragments(64, 60, 32));
  CHECK_FALSE(fits_fragments(0, 64, 32));
  CHECK_FALSE(fits_fragments(64, 0, 32));
  CHECK_FALSE(fits_fragments(-8, 64, 32));
  CHECK_FALSE(fits_fragments(64, 64, 0));
  CHECK_FALSE(fits_fragments(64, 64, -32));
}
