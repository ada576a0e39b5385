#include "calibrating/second_moment.h"

#include <ATen/ATen.h>
#include <doctest/doctest.h>

using namespace graft;

TEST_CASE("the second moment is the mean of x x^T") {
  at::manual_seed(3);
  const auto x = at::randn({3, 1500, 300});
  const auto rows = x.view({-1, 300}).to(at::kDouble);
  const auto expected = at::mm(rows.t(), rows) / 4500;
  const auto found = second_moment({x.narrow(0, 0, 1), at::Tensor(), x.narrow(0, 1, 2)});
  CHECK(found.equal(found.t()));
  CHECK(at::allclose(found.to(at::kDouble), expected, 1e-4, 1e-5));
}

TEST_CASE("the second moment has the same bits whoever holds which batches") {
  at::manual_seed(3);
  std::vector<at::Tensor> inputs;
  for (int i = 0; i < 7; ++i) inputs.push_back(i == 4 ? at::Tensor() : at::randn({2, 10 + i, 100}));
  const auto rows = 2 * (6 * 10 + 0 + 1 + 2 + 3 + 5 + 6);
  const auto whole = second_moment(inputs);
  for (const std::int64_t holders : {2, 3, 7}) {
    CAPTURE(holders);
    std::vector<BatchRange> nodes;
    std::vector<at::Tensor> sums;
    for (std::int64_t h = 0; h < holders; ++h)
      for (const auto& node : nodes_of(7, {h * 7 / holders, (h + 1) * 7 / holders})) {
        nodes.push_back(node);
        sums.push_back(
            sum_of_products({inputs.begin() + node.first, inputs.begin() + node.last}, node));
      }
    CHECK(second_moment(100, 7, nodes, sums, rows).equal(whole));
  }
  CHECK_FALSE(second_moment({at::Tensor(), at::empty({0, 8})}).defined());
}

TEST_CASE("second moments of bfloat16 have the bits that those of the same float32 have") {
  at::manual_seed(3);
  for (const std::int64_t rows : {1, 2, 127, 2049}) {
    CAPTURE(rows);
    const auto x = (at::randn({rows, 100}) * at::randn({100}).exp()).to(at::kBFloat16);
    CHECK(second_moment({x, x.narrow(0, 0, 1)})
              .equal(second_moment({x.to(at::kFloat), x.narrow(0, 0, 1).to(at::kFloat)})));
  }
}
