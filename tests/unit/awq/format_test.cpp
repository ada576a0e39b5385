#include "kernels/format.h"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "kernels/dequantize.h"

using namespace graft;
using namespace graft::awq;

namespace {

constexpr std::int64_t kInputs = 128, kOutputs = 32, kGroups = 2;

template <class T>
std::vector<T> read(const std::string& name) {
  const auto file = Checkpoint::open_file(GRAFT_TEST_DATA "/vectors/awq_4bit_128x32_g64.safetensors");
  const auto& info = file.at(name);
  std::vector<T> values(info.bytes / sizeof(T));
  file.read(info, values.data());
  return values;
}

std::vector<std::uint8_t> golden(const std::string& name) {
  const auto wide = read<std::int32_t>(name);
  return {wide.begin(), wide.end()};
}

}  // namespace

TEST_CASE("the three layouts of AutoAWQ are read and written bit for bit") {
  const auto codes = golden("codes");
  std::vector<std::uint8_t> found(codes.size());

  const auto gemm = read<std::uint32_t>("gemm.qweight");
  unpack_gemm(gemm.data(), kInputs * kOutputs, found.data());
  CHECK(found == codes);
  std::vector<std::uint32_t> gemm_again(gemm.size());
  pack_gemm(codes.data(), kInputs * kOutputs, gemm_again.data());
  CHECK(gemm_again == gemm);

  const auto gemv = read<std::uint32_t>("gemv.qweight");
  unpack_gemv(gemv.data(), kInputs, kOutputs, found.data());
  CHECK(found == codes);
  std::vector<std::uint32_t> gemv_again(gemv.size());
  pack_gemv(codes.data(), kInputs, kOutputs, gemv_again.data());
  CHECK(gemv_again == gemv);

  const auto fast = read<std::uint16_t>("gemv_fast.qweight");
  unpack_gemv_fast(fast.data(), kInputs, kOutputs, found.data());
  CHECK(found == codes);
  std::vector<std::uint16_t> fast_again(fast.size());
  pack_gemv_fast(codes.data(), kInputs, kOutputs, fast_again.data());
  CHECK(fast_again == fast);
  CHECK(fast[0] == 0x59c0);
}

TEST_CASE("zero points are read in the order of GEMM and in that of GEMV") {
  const auto zeros = golden("zeros");
  std::vector<std::uint8_t> found(zeros.size());
  const auto gemm = read<std::uint32_t>("gemm.qzeros");
  unpack_gemm(gemm.data(), kGroups * kOutputs, found.data());
  CHECK(found == zeros);
  const std::int64_t width = gemv_zero_words(kGroups, 64);
  CHECK(width == 2);
  const auto gemv = read<std::uint32_t>("gemv.qzeros");
  REQUIRE(gemv.size() == static_cast<std::size_t>(width * kOutputs));
  std::vector<std::uint8_t> padded(static_cast<std::size_t>(width * 8 * kOutputs));
  unpack_gemv(gemv.data(), width * 8, kOutputs, padded.data());
  CHECK(std::vector<std::uint8_t>(padded.begin(), padded.begin() + kGroups * kOutputs) == zeros);
}

TEST_CASE("a GEMV row of zero points is as wide as AutoAWQ makes it") {
  CHECK(gemv_zero_words(32, 128) == 4);
  CHECK(gemv_zero_words(1, 128) == 1);
  CHECK(gemv_zero_words(64, 64) == 8);
  CHECK(gemv_zero_words(3, 32) == 4);
  CHECK(gemv_zero_words(2, 16) == 0);
}

TEST_CASE("dequantized weights are those of AutoAWQ, at every CPU level") {
  const auto qweight = read<std::uint32_t>("gemm.qweight");
  const auto codes = golden("zeros");
  const std::vector<float> zeros(codes.begin(), codes.end());
  std::vector<float> scales;
  for (const auto half : read<_Float16>("gemm.scales")) scales.push_back(static_cast<float>(half));
  const auto expected = read<float>("weight");
  const Columns all{qweight.data(), kOutputs / 8,  kInputs,      kOutputs,
                    64,             scales.data(), zeros.data(), nullptr};
  for (const auto kernel : {&dequantize_scalar, dequantize()}) {
    std::vector<float> found(kInputs * kOutputs);
    kernel(all, found.data());
    for (std::size_t k = 0; k < kInputs; ++k)
      for (std::size_t n = 0; n < kOutputs; ++n)
        REQUIRE(static_cast<float>(static_cast<_Float16>(found[k * kOutputs + n])) ==
                expected[n * kInputs + k]);
  }
}

TEST_CASE("some columns with offsets come out alike at every CPU level") {
  std::mt19937 random(11);
  constexpr std::int64_t inputs = 48, outputs = 40, group_size = 20, groups = 3, count = 16;
  std::vector<std::uint32_t> qweight(inputs * outputs / 8);
  for (auto& word : qweight) word = static_cast<std::uint32_t>(random());
  std::vector<float> scales(groups * count), zeros(groups * count), offsets(groups * count);
  for (auto& value : scales) value = static_cast<float>(random()) / 4e9F;
  for (auto& value : zeros) value = static_cast<float>(random() % 16);
  for (auto& value : offsets) value = static_cast<float>(random()) / 4e9F;
  const Columns some{qweight.data() + 1, outputs / 8,  inputs,       count,
                     group_size,         scales.data(), zeros.data(), offsets.data()};
  std::vector<float> expected(inputs * count), found(inputs * count);
  dequantize_scalar(some, expected.data());
  dequantize()(some, found.data());
  CHECK(found == expected);
}
