#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>

#include "graft/rounding.h"

using namespace graft;

TEST_CASE("what outputs come to is the trace of M H M^T, whatever the size") {
  at::manual_seed(5);
  for (const std::int64_t k : {3, 256, 257, 700}) {
    CAPTURE(k);
    const auto x = at::randn({2 * k, k});
    const auto h = at::mm(x.t(), x);
    const auto symmetric = (h + h.t()) / 2;
    const std::vector<at::Tensor> matrices{at::randn({5, k}), at::randn({300, k})};
    const auto energies = output_energies(matrices, symmetric);
    REQUIRE(energies.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto m = matrices[i].to(at::kDouble);
      const auto expected = (at::mm(m, symmetric.to(at::kDouble)) * m).sum().item<double>();
      CHECK(std::abs(energies[i] / expected - 1) < 1e-6);
    }
  }
}
