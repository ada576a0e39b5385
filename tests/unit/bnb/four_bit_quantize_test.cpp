#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/four_bit.h"

using namespace graft;
using namespace graft::bnb;
using kernels::ElementType;

namespace {

/// Bytes of `count` elements whose values are in `wide` afterwards.
std::vector<std::uint8_t> elements(ElementType type, std::vector<float>& wide) {
  std::vector<std::uint8_t> bytes(wide.size() * (type == ElementType::f32 ? 4 : 2));
  for (std::size_t i = 0; i < wide.size(); ++i) {
    if (type == ElementType::f32) {
      std::memcpy(bytes.data() + 4 * i, &wide[i], 4);
    } else if (type == ElementType::f16) {
      const auto half = static_cast<_Float16>(wide[i]);
      wide[i] = static_cast<float>(half);
      std::memcpy(bytes.data() + 2 * i, &half, 2);
    } else {
      std::uint32_t bits;
      std::memcpy(&bits, &wide[i], 4);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(bytes.data() + 2 * i, &half, 2);
      bits &= 0xFFFF0000U;
      std::memcpy(&wide[i], &bits, 4);
    }
  }
  return bytes;
}

/// Gaussian numbers, blocks of zeros, denormals, and values on the borders of both tables.
std::vector<float> hard_values(std::int64_t count, std::int64_t blocksize) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 0.02F);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (auto& value : x) value = normal(random);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t block = i / blocksize;
    auto& value = x[static_cast<std::size_t>(i)];
    if (block % 7 == 1) value = 0;
    if (block % 7 == 2) value *= 1e-37F;
    if (block % 7 == 3) {
      const auto& t = thresholds(block % 2 ? QuantType::nf4 : QuantType::fp4);
      const auto pick = random() % 18;
      value = pick < 15 ? t.borders[pick] : pick == 15 ? 1.0F : pick == 16 ? -1.0F : -0.0F;
    }
  }
  return x;
}

}  // namespace

TEST_CASE("every level quantizes to the oracle's bytes, from every element type") {
  for (const auto type : {QuantType::nf4, QuantType::fp4})
    for (const std::int64_t blocksize : {32, 64, 256, 4096})
      for (const std::int64_t count : {1L, 31L, 64L, 4096L * 3 + 77, 64L * 1001})
        for (const auto element : {ElementType::f32, ElementType::bf16, ElementType::f16}) {
          auto wide = hard_values(count, blocksize);
          const auto bytes = elements(element, wide);
          const std::int64_t blocks = (count + blocksize - 1) / blocksize;
          const auto size = static_cast<std::size_t>((count + 1) / 2);
          std::vector<std::uint8_t> expected(size);
          std::vector<float> absmax(static_cast<std::size_t>(blocks));
          quantize_blocks(wide.data(), count, blocksize, type, 0, blocks, expected.data(),
                          absmax.data());
          for (const auto level : kernels::available_cpu_levels()) {
            std::vector<std::uint8_t> packed(size + 1, 0xEE);
            std::vector<float> found(absmax.size() + 1, 5.0F);
            // In two parts, as threads do.
            const std::int64_t middle = blocks / 3;
            CHECK(quantize_elements_at(level, bytes.data(), element, count, blocksize, type, 0,
                                       middle, packed.data(), found.data()));
            CHECK(quantize_elements_at(level, bytes.data(), element, count, blocksize, type, middle,
                                       blocks, packed.data(), found.data()));
            CHECK(packed.back() == 0xEE);
            CHECK(found.back() == 5.0F);
            packed.pop_back();
            found.pop_back();
            CHECK(packed == expected);
            CHECK(std::memcmp(found.data(), absmax.data(), 4 * absmax.size()) == 0);
          }
        }
}

TEST_CASE("NaN and infinity are reported wherever they are") {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
    for (const std::size_t place : {std::size_t{0}, std::size_t{70}, std::size_t{199}})
      for (const auto level : kernels::available_cpu_levels()) {
        std::vector<float> x(200, 0.5F);
        x[place] = bad;
        std::vector<std::uint8_t> packed(100);
        std::vector<float> absmax(4);
        CHECK(!quantize_elements_at(level, x.data(), ElementType::f32, 200, 64, QuantType::nf4, 0,
                                    4, packed.data(), absmax.data()));
      }
}
