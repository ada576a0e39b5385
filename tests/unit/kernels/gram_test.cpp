#include "kernels/gram.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/scratch.h"

using namespace graft::kernels;

namespace {

constexpr std::int64_t kTile = kGramColumns * kGramColumns;

template <class Value>
struct Aligned {
  Scratch memory;
  Value* values;
  explicit Aligned(std::int64_t count)
      : values(reinterpret_cast<Value*>(memory.at_least(count * 4))) {}
};
using Floats = Aligned<float>;
using Words = Aligned<std::uint32_t>;

}  // namespace

TEST_CASE("a tile of second moments is the sum of products, with the same bits at every level") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const std::int64_t rows : {1, 127, 128, 300}) {
    CAPTURE(rows);
    Floats left(rows * kGramColumns), right(rows * kGramColumns), start(kTile), scalar(kTile);
    for (std::int64_t i = 0; i < rows * kGramColumns; ++i) {
      left.values[i] = normal(random);
      right.values[i] = normal(random);
    }
    for (std::int64_t i = 0; i < kTile; ++i) start.values[i] = scalar.values[i] = normal(random);
    gram_tile_scalar(left.values, right.values, rows, scalar.values);
    double worst = 0;
    for (std::int64_t i = 0; i < kGramColumns; ++i)
      for (std::int64_t j = 0; j < kGramColumns; ++j) {
        double sum = start.values[i * kGramColumns + j];
        for (std::int64_t r = 0; r < rows; ++r)
          sum += static_cast<double>(left.values[r * kGramColumns + i]) *
                 right.values[r * kGramColumns + j];
        worst = std::max(worst, std::abs(sum - scalar.values[i * kGramColumns + j]));
      }
    CHECK(worst < 1e-4);
    for (const auto level : available_cpu_levels()) {
      CAPTURE(name_of(level));
      Floats fast(kTile);
      std::memcpy(fast.values, start.values, kTile * 4);
      gram_tile(level)(left.values, right.values, rows, fast.values);
      CHECK(std::memcmp(fast.values, scalar.values, kTile * 4) == 0);
    }
  }
}

TEST_CASE("a tile of pairs of rows has the bits of one of rows, where the processor has it") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const std::int64_t pairs : {1, 127, 128, 300}) {
    CAPTURE(pairs);
    Floats left(2 * pairs * kGramColumns), right(2 * pairs * kGramColumns), scalar(kTile);
    Floats fast(kTile);
    Words left_words(pairs * kGramColumns), right_words(pairs * kGramColumns);
    const auto fill = [&](Floats& rows, Words& words) {
      for (std::int64_t p = 0; p < pairs; ++p)
        for (std::int64_t c = 0; c < kGramColumns; ++c) {
          std::uint32_t word = 0;
          for (int later = 0; later < 2; ++later) {
            const float drawn = normal(random) * std::exp(2 * normal(random));
            const std::uint32_t bits = std::bit_cast<std::uint32_t>(drawn) & 0xffff0000U;
            word |= later ? bits >> 16 : bits;
            rows.values[(2 * p + later) * kGramColumns + c] = std::bit_cast<float>(bits);
          }
          words.values[p * kGramColumns + c] = word;
        }
    };
    fill(left, left_words);
    fill(right, right_words);
    for (std::int64_t i = 0; i < kTile; ++i) fast.values[i] = scalar.values[i] = normal(random);
    gram_tile_scalar(left.values, right.values, 2 * pairs, scalar.values);
    for (const auto level : available_cpu_levels()) {
      const auto pair_tile = gram_pair_tile(level);
      if (!pair_tile) continue;
      CAPTURE(name_of(level));
      pair_tile(left_words.values, right_words.values, pairs, fast.values);
      CHECK(std::memcmp(fast.values, scalar.values, kTile * 4) == 0);
    }
  }
}
