#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include "graft/error.h"
#include "graft/rounding.h"
#include "thrown_by.h"

using namespace graft;

namespace {

InputStatistics statistics(std::int64_t inputs, std::int64_t tokens = 1000) {
  at::manual_seed(4);
  // Neighbours move together, and some inputs are far stronger than others.
  auto x = at::randn({tokens, inputs});
  x = x + 0.8 * x.roll(1, 1);
  x = x * at::logspace(0, -1.5, inputs).index_select(0, at::randperm(inputs));
  return {at::mm(x.t(), x) / static_cast<double>(tokens), tokens};
}

at::Tensor random_weight(std::int64_t outputs, std::int64_t inputs) {
  at::manual_seed(9);
  return at::randn({outputs, inputs}) * 0.02;
}

at::Tensor dequantized(const RoundedWeight& rounded, const at::Tensor& group_of) {
  const auto wide = [&](const at::Tensor& t) { return t.to(at::kFloat).index_select(1, group_of); };
  return (rounded.codes.to(at::kFloat) - wide(rounded.zeros)) * wide(rounded.scales);
}

at::Tensor natural_groups(std::int64_t inputs, std::int64_t size) {
  return at::arange(inputs, at::kLong).div(size, "floor");
}

double lost(const at::Tensor& weight, const at::Tensor& rounded, const at::Tensor& h) {
  const auto d = weight - rounded;
  return (at::mm(d, h) * d).sum().item<double>();
}

}  // namespace

TEST_CASE("scaled weights are rounded as by a rounder of the scaled input's own second moment") {
  constexpr std::int64_t n = 20, k = 96;
  const auto seen = statistics(k);
  const auto weight = random_weight(n, k);
  // With powers of two both ways have the same bits.
  const auto scales = at::randint(-3, 4, {k}).to(at::kFloat).exp2();
  RoundingOptions options;
  options.group_size = 32;
  options.damping = 0;  // a share of a mean, which scales change
  for (const auto order : {RoundingOrder::natural, RoundingOrder::grouped}) {
    options.order = order;
    const WeightRounder unscaled(k, seen, options);
    const auto found = unscaled.scaled(scales).round(weight * scales, {});
    if (order == RoundingOrder::natural) {
      const InputStatistics divided{seen.hessian / scales / scales.unsqueeze(1), seen.tokens};
      const auto expected = WeightRounder(k, divided, options).round(weight * scales, {});
      CHECK(found.codes.equal(expected.codes));
      CHECK(found.scales.equal(expected.scales));
    }
    const auto same = unscaled.scaled(at::ones({k})).round(weight, {});
    CHECK(same.codes.equal(unscaled.round(weight, {}).codes));
  }
  const WeightRounder plain(k, {}, options);
  CHECK(plain.scaled(scales).round(weight, {}).codes.equal(plain.round(weight, {}).codes));
}

TEST_CASE("a rounded weight loses less at the output than the nearest one, in every order") {
  constexpr std::int64_t n = 40, k = 200, size = 64;  // the last group is short
  const auto seen = statistics(k);
  const auto weight = random_weight(n, k);
  RoundingOptions options;
  options.group_size = size;
  const WeightRounder plain(k, {}, options);
  CHECK(plain.fallback().empty());
  for (const bool own_zeros : {false, true}) {
    WeightGrid grid;
    grid.own_zeros = own_zeros;
    const double nearest = lost(
        weight, dequantized(plain.round(weight, grid), natural_groups(k, size)), seen.hessian);
    for (const auto order :
         {RoundingOrder::natural, RoundingOrder::grouped, RoundingOrder::activation}) {
      options.order = order;
      const WeightRounder rounder(k, seen, options);
      CHECK(rounder.groups() == 4);
      const auto groups = rounder.group_of();
      CHECK(groups.defined() == (order == RoundingOrder::activation));
      const auto rounded = rounder.round(weight, grid);
      CHECK(rounded.codes.sizes().vec() == std::vector<std::int64_t>{n, k});
      CHECK(rounded.scales.sizes().vec() == std::vector<std::int64_t>{n, 4});
      CHECK((rounded.scales.scalar_type() == at::kHalf));
      const auto found =
          dequantized(rounded, groups.defined() ? groups.to(at::kLong) : natural_groups(k, size));
      CHECK(lost(weight, found, seen.hessian) < 0.8 * nearest);
      CHECK((found - weight).abs().max().item<double>() < 0.05);
    }
  }
}

TEST_CASE("act-order groups inputs by falling strength") {
  const auto seen = statistics(96);
  RoundingOptions options;
  options.group_size = 32;
  options.order = RoundingOrder::activation;
  const WeightRounder rounder(96, seen, options);
  const auto strength = seen.hessian.diagonal();
  const auto groups = rounder.group_of();
  for (std::int64_t g = 0; g + 1 < 3; ++g)
    CHECK(strength.index({groups == g}).min().item<float>() >=
          strength.index({groups == g + 1}).max().item<float>());
}

TEST_CASE("statistics that cannot be used are named, and every input counts alike then") {
  const std::int64_t k = 64;
  const auto weight = random_weight(16, k);
  RoundingOptions options;
  options.group_size = 32;
  const auto plain = WeightRounder(k, {}, options).round(weight, {});
  const auto falls_back = [&](const at::Tensor& h, const std::string& why) {
    const WeightRounder rounder(k, {h, 100}, options);
    CHECK(rounder.fallback() == why);
    CHECK_FALSE(rounder.group_of().defined());
    CHECK(rounder.round(weight, {}).codes.equal(plain.codes));
  };
  const auto good = statistics(k).hessian;
  auto broken = good.clone();
  broken[3][5] = std::numeric_limits<float>::quiet_NaN();
  falls_back(broken, "the input is not finite somewhere in the calibration text");
  falls_back(at::zeros({k, k}), "the input is zero in all of the calibration text");
  // No second moment: its off-diagonal is larger than any could be.
  falls_back(good + at::ones({k, k}) * 1e4 - at::eye(k) * 1e4,
             "the second moment of the input is not positive definite");
}

TEST_CASE("inputs that are always zero and few tokens do no harm") {
  const std::int64_t k = 64;
  auto seen = statistics(k, 3);
  seen.hessian.narrow(0, 10, 5).zero_();
  seen.hessian.narrow(1, 10, 5).zero_();
  RoundingOptions options;
  options.group_size = 32;
  const WeightRounder rounder(k, seen, options);
  CHECK(rounder.fallback().empty());
  const auto weight = random_weight(20, k);
  const auto found = dequantized(rounder.round(weight, {}), natural_groups(k, 32));
  CHECK((found - weight).abs().max().item<double>() < 0.05);
}

TEST_CASE("given scales are kept") {
  const std::int64_t k = 64;
  RoundingOptions options;
  options.group_size = 32;
  const WeightRounder rounder(k, statistics(k), options);
  const auto weight = random_weight(20, k);
  const auto scales = at::rand({20, 2}).mul(0.01).add(0.005).to(at::kHalf);
  const auto rounded = rounder.round(weight, {}, scales);
  CHECK(rounded.scales.equal(scales));
  CHECK(rounded.zeros.eq(8).all().item<bool>());
}

TEST_CASE("a weight that is not finite is refused") {
  auto weight = random_weight(4, 32);
  weight[1][2] = std::numeric_limits<float>::infinity();
  const WeightRounder rounder(32, {}, {});
  CHECK(test::message_of([&] { rounder.round(weight, {}); })
            .find("the weight holds a number that is not finite") != std::string::npos);
}
