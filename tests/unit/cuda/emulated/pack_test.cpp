#include "cuda/pack.h"

#include <doctest/doctest.h>

#include "cuda/dequantize.h"
#include "weights.h"

using namespace graft;
using namespace graft::cuda;
using namespace graft::test;

namespace {

struct Size {
  std::int64_t n, k, group;
};
constexpr Size kSizes[] = {{8, 8, 32},      {16, 64, 32},    {64, 128, 64}, {72, 136, 32},
                           {200, 192, 128}, {136, 328, 256}, {120, 264, 264}};
constexpr CodeKind kKinds[] = {CodeKind::int4, CodeKind::table4};
constexpr std::uint32_t kUntouched = 0xDEADBEEF;

/// Into the middle of numbers that stay as they are.
template <class T>
void check_dequantized(const Weight& w, std::int64_t first, std::int64_t count) {
  constexpr std::int64_t kBeside = 16;
  const T beside = rounded<T>(1234);
  const std::int64_t size = count * w.shape.k;
  std::vector<T> out(static_cast<std::size_t>(size + 2 * kBeside), beside), expected = out;
  for (std::int64_t i = 0; i < size; ++i) {
    const auto at = static_cast<std::size_t>(first * w.shape.k + i);
    expected[static_cast<std::size_t>(kBeside + i)] = rounded<T>(w.levels[at] * w.scales[at]);
  }
  CAPTURE(w.name());
  CAPTURE(std::string(kNameOf<T>));
  CAPTURE(first);
  CHECK(dequantize(w.view(), first, count, kDenseType<T>, out.data() + kBeside, nullptr) ==
        cudaSuccess);
  // Bits: zeros of both signs are equal, and no two others are.
  bool same = true;
  for (std::size_t i = 0; i < out.size(); ++i) same &= widened(out[i]) == widened(expected[i]);
  CHECK(same);
}

}  // namespace

TEST_CASE("packed codes are where the layout says, and come back as they were") {
  std::mt19937 random(1);
  for (const auto kind : kKinds)
    for (const auto& [n, k, group] : kSizes) {
      const auto w = random_weight<__half>(kind, n, k, group, random);
      CAPTURE(w.name());
      auto codes = std::vector<std::uint32_t>(w.codes.size() + 1, kUntouched);
      CHECK(pack_codes(w.shape, w.plain.data(), codes.data(), nullptr) == cudaSuccess);
      CHECK(codes.back() == kUntouched);
      codes.pop_back();
      CHECK(codes == w.codes);
      auto plain = std::vector<std::uint32_t>(w.plain.size() + 1, kUntouched);
      CHECK(unpack_codes(w.shape, codes.data(), plain.data(), nullptr) == cudaSuccess);
      CHECK(plain.back() == kUntouched);
      plain.pop_back();
      CHECK(plain == w.plain);
    }
}

TEST_CASE_TEMPLATE("dequantized weights are products in float32 rounded once, and nothing beside",
                   T, __half, __nv_bfloat16) {
  std::mt19937 random(2);
  int turn = 0;
  for (const auto kind : kKinds)
    for (const auto& [n, k, group] : kSizes) {
      const auto w = random_weight<T>(kind, n, k, group, random);
      for (const std::int64_t first : {0, 64, 128}) {
        if (first >= n) continue;
        const Scheduled scheduled(kSchedules[++turn % 4]);
        check_dequantized<__half>(w, first, n - first);
        check_dequantized<__nv_bfloat16>(w, first, n - first);
        check_dequantized<float>(w, first, std::min<std::int64_t>(n - first, 5));
      }
    }
}

TEST_CASE("outputs that are not there, or begin inside a band, are not dequantized") {
  std::mt19937 random(3);
  const auto w = random_weight<__half>(CodeKind::int4, 72, 128, 64, random);
  std::vector<float> out(72 * 128);
  for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{8, 8}, {64, 9}, {0, 0}})
    CHECK(dequantize(w.view(), first, count, DenseType::f32, out.data(), nullptr) ==
          cudaErrorInvalidValue);
}
