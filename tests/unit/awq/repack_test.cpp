#include "kernels/repack.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

#include "kernels/dequantize.h"
#include "unit/kernels/panel_memory.h"

using namespace graft;
using namespace graft::awq;
using graft::tests::PanelMemory;
using graft::tests::product_error;

namespace {

struct Case {
  std::int64_t n, k, group;
};

// Half a panel; a panel and a half; groups that no step divides; a short last group; inputs that
// fill no step; one group for all.
constexpr Case kCases[] = {{8, 32, 32},  {16, 64, 32},  {24, 128, 64}, {40, 60, 20},
                           {24, 96, 64}, {16, 100, 32}, {16, 33, 33},  {48, 256, 256}};

std::vector<std::uint32_t> random_words(const Case& at) {
  std::mt19937 random(3);
  std::vector<std::uint32_t> words(static_cast<std::size_t>(at.k * at.n / 8));
  for (auto& word : words) word = static_cast<std::uint32_t>(random());
  return words;
}

}  // namespace

TEST_CASE("panels of AWQ's words multiply as the weight that the scalar code makes of them") {
  for (const auto& at : kCases) {
    CAPTURE(at.n);
    CAPTURE(at.k);
    const auto words = random_words(at);
    PanelMemory panels(kernels::panel_shape(kernels::PanelKind::int4, at.n, at.k, at.group));
    pack(panels.shape, words.data(), 0, panels.shape.panels, panels.codes());
    std::mt19937 random(4);
    std::vector<float> scales, zeros;  // [groups, n]
    for (std::int64_t g = 0; g < panels.shape.groups; ++g)
      for (std::int64_t n = 0; n < at.n; ++n) {
        scales.push_back(std::uniform_real_distribution<float>(-0.02F, 0.02F)(random));
        zeros.push_back(static_cast<float>(random() % 16));
        panels.set_group(n, g, scales.back(), static_cast<int>(zeros.back()));
      }
    std::vector<float> dense(static_cast<std::size_t>(at.k * at.n));
    dequantize_scalar(
        {words.data(), at.n / 8, at.k, at.n, at.group, scales.data(), zeros.data(), nullptr},
        dense.data());
    CHECK(product_error(panels.weight(), dense) <= 1e-6);
  }
}

TEST_CASE("panels give AWQ's words back bit for bit") {
  for (const auto& at : kCases) {
    const auto words = random_words(at);
    PanelMemory panels(kernels::panel_shape(kernels::PanelKind::int4, at.n, at.k, at.group));
    pack(panels.shape, words.data(), 0, panels.shape.panels, panels.codes());
    std::vector<std::uint32_t> again(words.size());
    unpack(panels.shape, panels.codes(), 0, panels.shape.panels, again.data(), at.n / 8);
    CHECK(again == words);
  }
}
