#include "kernels/gram.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/scratch.h"

using namespace graft::kernels;

namespace {

constexpr std::int64_t kTile = kGramColumns * kGramColumns;

struct Aligned {
  Scratch memory;
  float* values;
  explicit Aligned(std::int64_t count)
      : values(reinterpret_cast<float*>(memory.at_least(count * 4))) {}
};

}  // namespace

TEST_CASE("a tile of second moments is the sum of products, with the same bits at every level") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const std::int64_t rows : {1, 127, 128, 300}) {
    CAPTURE(rows);
    Aligned left(rows * kGramColumns), right(rows * kGramColumns), start(kTile), scalar(kTile);
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
      Aligned fast(kTile);
      std::memcpy(fast.values, start.values, kTile * 4);
      gram_tile(level)(left.values, right.values, rows, fast.values);
      CHECK(std::memcmp(fast.values, scalar.values, kTile * 4) == 0);
    }
  }
}
