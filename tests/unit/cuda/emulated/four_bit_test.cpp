#include "kernels/four_bit.h"

#include <doctest/doctest.h>

#include <cmath>

#include "kernels/four_bit_cuda.h"
#include "weights.h"

using namespace graft;
using namespace graft::test;
using bnb::QuantType;

namespace {

constexpr QuantType kQuants[] = {QuantType::nf4, QuantType::fp4};
constexpr std::uint8_t kUntouched = 0xA5;

struct Blocks {
  std::vector<std::uint8_t> packed;
  std::vector<float> absmax;
};

/// What the CPU makes of them.
Blocks on_cpu(const std::vector<float>& x, std::int64_t blocksize, QuantType quant) {
  const auto count = static_cast<std::int64_t>(x.size());
  const std::int64_t blocks = (count + blocksize - 1) / blocksize;
  Blocks out{std::vector<std::uint8_t>(static_cast<std::size_t>((count + 1) / 2)),
             std::vector<float>(static_cast<std::size_t>(blocks))};
  bnb::quantize_blocks(x.data(), count, blocksize, quant, 0, blocks, out.packed.data(),
                       out.absmax.data());
  return out;
}

template <class T>
std::vector<float> widened(const std::vector<T>& x) {
  std::vector<float> out;
  for (const auto value : x) out.push_back(test::widened(value));
  return out;
}

/// The kernel's, which writes nothing behind them; and whether all were finite.
template <class T>
std::pair<Blocks, bool> quantized(const std::vector<T>& x, std::int64_t blocksize,
                                  QuantType quant) {
  const auto count = static_cast<std::int64_t>(x.size());
  const std::int64_t blocks = (count + blocksize - 1) / blocksize;
  Blocks out{std::vector<std::uint8_t>(static_cast<std::size_t>((count + 1) / 2 + 4), kUntouched),
             std::vector<float>(static_cast<std::size_t>(blocks + 1), -1)};
  int not_finite = 0;
  CHECK(bnb::quantize_blocks_cuda(x.data(), kDenseType<T>, count, blocksize, quant,
                                  out.packed.data(), out.absmax.data(), &not_finite,
                                  nullptr) == cudaSuccess);
  for (int i = 0; i < 4; ++i) {
    CHECK(out.packed.back() == kUntouched);
    out.packed.pop_back();
  }
  CHECK(out.absmax.back() == -1);
  out.absmax.pop_back();
  return {out, not_finite == 0};
}

}  // namespace

TEST_CASE_TEMPLATE("4-bit codes and absmax of an emulated device are those of the CPU, bit for bit",
                   T, __half, __nv_bfloat16, float) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  int turn = 0;
  for (const auto quant : kQuants)
    for (const std::int64_t blocksize : {32, 64, 128, 256, 512, 4096, 80})
      for (const std::int64_t count : {8192 + 2 * 64, 1000, 33, 1}) {
        std::vector<T> x(static_cast<std::size_t>(count));
        for (auto& value : x)
          value = rounded<T>(normal(random) *
                             std::pow(10.0F, static_cast<float>(random() % 9) - 6));
        if (count > 5000) std::fill(x.begin() + 1024, x.begin() + 1024 + 512, rounded<T>(0));
        const Scheduled scheduled(kSchedules[++turn % 4]);
        const auto expected = on_cpu(widened(x), blocksize, quant);
        const auto [found, finite] = quantized(x, blocksize, quant);
        CAPTURE(std::string(kNameOf<T>));
        CAPTURE(blocksize);
        CAPTURE(count);
        CHECK(finite);
        CHECK(found.packed == expected.packed);
        CHECK(found.absmax == expected.absmax);
      }
}

TEST_CASE("values on the borders between 4-bit codes go where the CPU has them") {
  for (const auto quant : kQuants) {
    // Blocks whose largest value is 1, so that no value is scaled.
    std::vector<float> x;
    for (const float border : bnb::thresholds(quant).borders)
      for (const float value :
           {border, std::nextafter(border, -2.0F), std::nextafter(border, 2.0F)}) {
        if (x.size() % 32 == 0) x.push_back(1);
        x.push_back(value);
      }
    x.resize((x.size() + 31) / 32 * 32);
    const auto expected = on_cpu(x, 32, quant);
    CHECK(quantized(x, 32, quant).first.packed == expected.packed);
    x.pop_back();  // through the kernel of any block
    CHECK(quantized(x, 4096, quant).first.packed == on_cpu(x, 4096, quant).packed);
  }
}

TEST_CASE_TEMPLATE("an emulated device reports NaN and infinity among values for 4 bits", T, __half,
                   __nv_bfloat16, float) {
  for (const auto quant : kQuants)
    for (const std::int64_t blocksize : {64, 512})
      for (const float value : {NAN, INFINITY, -INFINITY})
        for (const std::size_t at : {0, 777, 999}) {
          std::vector<T> x(1000, rounded<T>(0));
          CHECK(quantized(x, blocksize, quant).second);
          x[at] = rounded<T>(value);
          CHECK_FALSE(quantized(x, blocksize, quant).second);
        }
}

TEST_CASE_TEMPLATE("4-bit blocks are dequantized as on the CPU, rounded once, and nothing beside",
                   T, __half, __nv_bfloat16, float) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const auto quant : kQuants)
    for (const std::int64_t blocksize : {64, 4096})
      for (const std::int64_t count : {2048 + 8, 1000, 33, 1}) {
        std::vector<float> x(static_cast<std::size_t>(count)), expected(x);
        for (auto& value : x) value = normal(random);
        const auto [packed, absmax] = on_cpu(x, blocksize, quant);
        const auto& levels = bnb::code_table(quant);
        bnb::dequantize_blocks_scalar(packed.data(), levels.data(), absmax.data(), blocksize, 0,
                                      count, expected.data());
        std::vector<T> found(static_cast<std::size_t>(count + 8), rounded<T>(77));
        CHECK(bnb::dequantize_blocks_cuda(packed.data(), levels.data(), absmax.data(), blocksize,
                                          count, kDenseType<T>, found.data(),
                                          nullptr) == cudaSuccess);
        std::size_t same = 0;
        for (std::size_t i = 0; i < x.size(); ++i)
          same += test::widened(found[i]) == test::widened(rounded<T>(expected[i]));
        CHECK(same == x.size());
        for (int i = 0; i < 8; ++i, found.pop_back()) CHECK(test::widened(found.back()) == 77);
      }
}

TEST_CASE("absmax of double quantization on an emulated device is that of the CPU") {
  std::mt19937 random(3);
  constexpr std::int64_t kCount = 1000;
  std::vector<std::uint8_t> codes(kCount);
  std::vector<float> nested((kCount + 255) / 256), expected(kCount + 1, -1), found(expected);
  for (auto& code : codes) code = static_cast<std::uint8_t>(random());
  for (auto& value : nested) value = static_cast<float>(random() % 1000) / 999;
  const auto& map = bnb::dynamic_map();
  bnb::dequantize_nested(codes.data(), kCount, map.data(), nested.data(), 256, 0.037F,
                         expected.data());
  CHECK(bnb::dequantize_nested_cuda(codes.data(), kCount, map.data(), nested.data(), 256, 0.037F,
                                    found.data(), nullptr) == cudaSuccess);
  CHECK(found == expected);
}

TEST_CASE("4-bit blocks that do not fit are refused") {
  const float x[8] = {};
  const std::uint8_t codes[4] = {};
  std::uint8_t packed[4];
  float absmax[4], out[8];
  int not_finite = 0;
  for (const auto& [count, blocksize] :
       {std::pair<std::int64_t, std::int64_t>{0, 64}, {8, 0}, {8, 7}})
    CHECK(bnb::quantize_blocks_cuda(x, cuda::DenseType::f32, count, blocksize, QuantType::nf4,
                                    packed, absmax, &not_finite,
                                    nullptr) == cudaErrorInvalidValue);
  for (const auto& [count, blocksize] : {std::pair<std::int64_t, std::int64_t>{0, 64}, {8, 4}})
    CHECK(bnb::dequantize_blocks_cuda(codes, bnb::code_table(QuantType::nf4).data(), absmax,
                                      blocksize, count, cuda::DenseType::f32, out,
                                      nullptr) == cudaErrorInvalidValue);
}
