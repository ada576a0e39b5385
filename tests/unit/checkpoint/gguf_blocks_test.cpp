#include "checkpoint/gguf_blocks.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "graft/checkpoint.h"

using namespace graft;

TEST_CASE("blocks of every format have the values of the gguf package, bit for bit") {
  const auto golden = Checkpoint::open_file(GRAFT_TEST_DATA "/gguf/blocks.safetensors");
  int formats = 0;
  for (std::uint32_t id = 0; id < 64; ++id) {
    const BlockFormat* format = block_format(id);
    if (!format || !format->dequantize) continue;
    ++formats;
    const std::string name(format->name);
    CAPTURE(name);
    const TensorInfo& blocks = golden.at(name + ".blocks");
    const TensorInfo& values = golden.at(name + ".values");
    std::vector<std::byte> bytes(blocks.bytes + 1);
    golden.read(blocks, bytes.data() + 1);  // at an odd address
    std::vector<float> expected(values.bytes / sizeof(float)), found(expected.size());
    golden.read(values, expected.data());
    const auto count = static_cast<std::uint64_t>(blocks.shape[0]);
    REQUIRE(blocks.shape[1] == format->bytes);
    REQUIRE(expected.size() == count * format->elements);
    format->dequantize(bytes.data() + 1, count, found.data());
    std::size_t different = 0;
    for (std::size_t i = 0; i < found.size(); ++i)
      different +=
          std::bit_cast<std::uint32_t>(found[i]) != std::bit_cast<std::uint32_t>(expected[i]);
    CHECK(different == 0);
  }
  CHECK(formats == 11);
}

TEST_CASE("formats that are known by name only cannot be read") {
  REQUIRE(block_format(10));
  CHECK(block_format(10)->name == "Q2_K");
  CHECK((block_format(10)->dequantize == nullptr));
  CHECK((block_format(4) == nullptr));  // Q4_2, removed from ggml
  CHECK(readable_block_formats() ==
        "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16");
}

TEST_CASE("every float16 survives the way to float32 and back") {
  int different = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = float_of_half(half);
    if (std::isnan(value)) {
      different += (half & 0x7C00) != 0x7C00 || (half & 0x3FF) == 0 ||
                   !std::isnan(float_of_half(half_of_float(value)));
    } else {
      different += half_of_float(value) != half;
    }
  }
  CHECK(different == 0);
}

TEST_CASE("narrow floats round to nearest, ties to even") {
  CHECK(half_of_float(1.0f + 0x1p-11f) == 0x3C00);
  CHECK(half_of_float(1.0f + 3 * 0x1p-11f) == 0x3C02);
  CHECK(half_of_float(1.0f + 0x1p-11f + 0x1p-20f) == 0x3C01);
  CHECK(half_of_float(65519.996f) == 0x7BFF);
  CHECK(half_of_float(65520.0f) == 0x7C00);
  CHECK(half_of_float(-0x1p-25f) == 0x8000);
  CHECK(half_of_float(0x1.8p-24f) == 0x0002);
  CHECK(half_of_float(1023.5f * 0x1p-24f) == 0x0400);  // the largest subnormal and a half
  CHECK(half_of_float(0x1.FFEp-15f) == 0x0400);
  CHECK(bfloat16_of_float(1.0f + 0x1p-8f) == 0x3F80);
  CHECK(bfloat16_of_float(1.0f + 3 * 0x1p-8f) == 0x3F82);
  CHECK(bfloat16_of_float(1.0f + 0x1p-8f + 0x1p-20f) == 0x3F81);
  CHECK(bfloat16_of_float(std::numeric_limits<float>::max()) == 0x7F80);
  CHECK((bfloat16_of_float(std::bit_cast<float>(0x7F800001u)) & 0x7F) != 0);
  CHECK(bfloat16_of_float(-std::numeric_limits<float>::infinity()) == 0xFF80);
}
