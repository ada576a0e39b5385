#include "calibrating/mixed_bits.h"

#include <doctest/doctest.h>

#include "thrown_by.h"

using namespace graft;
using namespace graft::test;

namespace {

BitsChoices group(const char* name, std::uint64_t weights, std::map<int, double> errors) {
  BitsChoices out;
  out.modules = {name};
  for (const auto& [bits, error] : errors)
    out.by_bits[bits] = {weights * static_cast<std::uint64_t>(bits) / 8, error};
  return out;
}

}  // namespace

TEST_CASE("bits go where they lower the error most for their bytes, up to the limit") {
  const std::vector<BitsChoices> groups{group("even", 80, {{2, 0.10}, {4, 0.05}, {8, 0.01}}),
                                        group("easy", 80, {{2, 0.02}, {4, 0.01}, {8, 0.00}}),
                                        group("hard", 80, {{2, 0.90}, {4, 0.20}, {8, 0.01}})};
  using Bits = std::vector<int>;
  CHECK(choose_bits(groups, 60) == Bits{2, 2, 2});
  CHECK(choose_bits(groups, 80) == Bits{2, 2, 4});
  CHECK(choose_bits(groups, 119) == Bits{4, 2, 4});  // the whole way of "hard" does not fit
  CHECK(choose_bits(groups, 120) == Bits{2, 2, 8});
  CHECK(choose_bits(groups, 140) == Bits{4, 2, 8});
  CHECK(choose_bits(groups, 1000) == Bits{8, 8, 8});
  CHECK(contains(message_of([&] { choose_bits(groups, 59); }),
                 "expected at least 60 bytes of quantized modules, at most 240, found 59"));
}

TEST_CASE("more bits that lose more are not taken, and unknown errors count as the others' mean") {
  using Bits = std::vector<int>;
  CHECK(choose_bits({group("odd", 80, {{2, 0.1}, {4, 0.2}})}, 1000) == Bits{2});
  const std::vector<BitsChoices> groups{group("known", 80, {{2, 0.3}, {4, 0.1}}),
                                        group("no token", 40, {{2, -1}, {4, -1}})};
  CHECK(choose_bits(groups, 40) == Bits{2, 4});  // the same gain for half the bytes
  CHECK(choose_bits({group("no token", 40, {{2, -1}, {4, -1}})}, 1000) == Bits{2});
}
