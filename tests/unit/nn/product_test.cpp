#include "graft/nn/product.h"

#include <doctest/doctest.h>
#include <torch/types.h>

#include "plugins/torch_threads.h"

using namespace graft;

namespace {

at::Tensor values(at::IntArrayRef sizes) {
  std::int64_t count = 1;
  for (const auto size : sizes) count *= size;
  return at::arange(count, at::kFloat).mul(0.7).sin().view(sizes);
}

}  // namespace

TEST_CASE("a product of any number of rows has the same bits for any number of threads") {
  const auto weight = values({1500, 192}), bias = values({1500});
  for (std::int64_t rows = 1; rows <= 17; ++rows) {
    CAPTURE(rows);
    const auto x = values({rows, 192});
    const auto with = [&](int number) {
      const TorchThreads threads(number);
      return nn::linear(x, weight, bias);
    };
    const auto alone = with(1);
    CHECK(alone.equal(with(2)));
    CHECK(alone.equal(with(5)));
  }
}

TEST_CASE("a product is that of at::linear, whatever the shape, the type and the strides") {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const std::int64_t outputs : {0, 1, 3, 700}) {
      const auto weight = values({192, outputs}).t().to(dtype), bias = values({outputs}).to(dtype);
      for (const auto& x : {values({2, 3, 192}), values({192}), values({0, 192}),
                            values({192, 7}).t(), values({40, 192})}) {
        const auto expected = at::linear(x.to(dtype), weight, bias);
        const auto y = nn::linear(x.to(dtype), weight, bias);
        CHECK(y.sizes() == expected.sizes());
        CHECK(y.allclose(expected, 1e-5, 1e-5));
        CHECK(nn::linear(x.to(dtype), weight)
                  .allclose(at::linear(x.to(dtype), weight), 1e-5, 1e-5));
      }
    }
}

TEST_CASE("a product of few rows keeps gradients where they are wanted") {
  const auto x = values({5, 8}).requires_grad_(true);
  const auto weight = values({3, 8}).requires_grad_(true), bias = values({3}).requires_grad_(true);
  for (const auto& wanted : {x, weight, bias}) {
    const auto or_fixed = [&](const at::Tensor& one) {
      return one.is_same(wanted) ? one : one.detach();
    };
    nn::linear(or_fixed(x), or_fixed(weight), or_fixed(bias)).sum().backward();
    CHECK(wanted.grad().defined());
  }
}

TEST_CASE("each part is run once, for none and one of them too") {
  for (const std::int64_t parts : {0, 1, 2, 9}) {
    std::vector<int> times(static_cast<std::size_t>(parts));
    nn::for_each_part(parts, [&](std::int64_t part) { ++times[static_cast<std::size_t>(part)]; });
    CHECK(times == std::vector<int>(times.size(), 1));
  }
}
