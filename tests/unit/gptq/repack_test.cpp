#include "kernels/repack.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/dequantize.h"
#include "kernels/format.h"
#include "unit/kernels/panel_memory.h"

using namespace graft;
using namespace graft::gptq;
using graft::tests::PanelMemory;
using graft::tests::product_error;

namespace {

using Words = std::vector<std::uint32_t>;

struct Case {
  std::int64_t n, k, group;
  bool reordered;
};

// One output; outputs that end inside a panel; groups that no step divides; a short last group; one
// group for all; each with inputs in order and not.
constexpr Case kCases[] = {{1, 32, 32, false},   {16, 64, 32, false}, {37, 128, 64, false},
                           {20, 160, 20, false}, {33, 96, 64, false}, {40, 128, 128, false},
                           {16, 64, 32, true},   {37, 128, 64, true}, {20, 160, 20, true},
                           {33, 96, 64, true},   {8, 224, 96, true}};

struct Matrix {
  Words words;
  std::vector<std::int32_t> group;
  std::vector<float> scales, zeros;  // [groups, n]
};

Matrix random_matrix(const Case& at, int bits, unsigned seed) {
  std::mt19937 random(seed);
  Matrix out;
  out.words.resize(static_cast<std::size_t>(words_for(at.k, bits) * at.n));
  for (auto& word : out.words) word = static_cast<std::uint32_t>(random());
  out.group.resize(static_cast<std::size_t>(at.k));
  for (std::int64_t k = 0; k < at.k; ++k)
    out.group[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(k / at.group);
  const auto groups = static_cast<std::int32_t>((at.k + at.group - 1) / at.group);
  if (at.reordered) {
    std::shuffle(out.group.begin(), out.group.end(), random);
    // The short group may be any.
    for (auto& g : out.group) g = groups - 1 - g;
  }
  for (std::int64_t i = 0; i < groups * at.n; ++i) {
    out.scales.push_back(std::uniform_real_distribution<float>(-0.02F, 0.02F)(random));
    out.zeros.push_back(static_cast<float>(random() % ((1U << bits) + 1)));
  }
  return out;
}

const std::int32_t* order_of(const Sorting& sorting) {
  return sorting.order.empty() ? nullptr : sorting.order.data();
}

}  // namespace

TEST_CASE("panels of GPTQ's words multiply as the weight that the scalar code makes of them") {
  for (const int bits : {2, 3, 4, 8})
    for (const auto& at : kCases) {
      CAPTURE(bits);
      CAPTURE(at.n);
      CAPTURE(at.k);
      CAPTURE(at.reordered);
      auto matrix = random_matrix(at, bits, 5);
      const auto sorting = sort_by_group(matrix.group.data(), at.k, at.group);
      REQUIRE(sorting.even);
      CHECK(sorting.order.empty() == !at.reordered);
      PanelMemory panels(kernels::panel_shape(panel_kind(bits), at.n, at.k, at.group));
      pack(panels.shape, {matrix.words.data(), at.n, bits, order_of(sorting)}, 0,
           panels.shape.panels, panels.codes());
      for (std::int64_t p = 0; p < panels.shape.groups; ++p)
        for (std::int64_t n = 0; n < at.n; ++n) {
          const auto from =
              static_cast<std::size_t>(sorting.groups[static_cast<std::size_t>(p)] * at.n + n);
          panels.set_group(n, p, matrix.scales[from], static_cast<int>(matrix.zeros[from]));
        }
      auto weight = panels.weight();
      weight.order = order_of(sorting);

      std::vector<float> dense(static_cast<std::size_t>(at.k * at.n));
      dequantize_scalar({matrix.words.data(), at.n, at.k, at.n, bits, matrix.group.data(),
                         matrix.scales.data(), matrix.zeros.data()},
                        dense.data());
      CHECK(product_error(weight, dense) <= 1e-6);
    }
}

TEST_CASE("panels give GPTQ's words back bit for bit") {
  for (const int bits : {2, 3, 4, 8})
    for (const auto& at : kCases) {
      auto matrix = random_matrix(at, bits, 6);
      const auto sorting = sort_by_group(matrix.group.data(), at.k, at.group);
      PanelMemory panels(kernels::panel_shape(panel_kind(bits), at.n, at.k, at.group));
      pack(panels.shape, {matrix.words.data(), at.n, bits, order_of(sorting)}, 0,
           panels.shape.panels, panels.codes());
      Words again(matrix.words.size());
      unpack(panels.shape, panels.codes(), 0, panels.shape.panels,
             {again.data(), at.n, bits, order_of(sorting)});
      CHECK(again == matrix.words);
    }
}

TEST_CASE("inputs sort by group and keep their order inside one") {
  const std::vector<std::int32_t> group{1, 0, 1, 2, 0, 2, 2};
  SUBCASE("the short group comes last") {
    // Group 2 has three inputs, groups 0 and 1 two each: no group size fits.
    CHECK_FALSE(sort_by_group(group.data(), 7, 3).even);
    const std::vector<std::int32_t> fitting{1, 0, 2, 2, 0, 2, 1, 1};
    const auto sorting = sort_by_group(fitting.data(), 8, 3);
    REQUIRE(sorting.even);
    CHECK(sorting.groups == std::vector<std::int32_t>{1, 2, 0});
    CHECK(sorting.order == std::vector<std::int32_t>{0, 6, 7, 2, 3, 5, 1, 4});
  }
  SUBCASE("inputs in order whose groups are not keep an order: scales are not in order then") {
    const std::vector<std::int32_t> renumbered{1, 1, 1, 0, 0};
    const auto sorting = sort_by_group(renumbered.data(), 5, 3);
    REQUIRE(sorting.even);
    CHECK(sorting.groups == std::vector<std::int32_t>{1, 0});
    CHECK(sorting.order == std::vector<std::int32_t>{0, 1, 2, 3, 4});
    const std::vector<std::int32_t> plain{0, 0, 0, 1, 1};
    CHECK(sort_by_group(plain.data(), 5, 3).order.empty());
  }
  SUBCASE("groups of other sizes are told") {
    const std::vector<std::int32_t> uneven{0, 0, 0, 1};
    CHECK_FALSE(sort_by_group(uneven.data(), 4, 2).even);
  }
}
