#include "kernels/format.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "kernels/dequantize.h"

using namespace graft;
using namespace graft::gptq;

namespace {

template <class T>
std::vector<T> read(const Checkpoint& file, const std::string& name) {
  const auto& info = file.at(name);
  std::vector<T> values(info.bytes / sizeof(T));
  file.read(info, values.data());
  return values;
}

std::vector<float> read_half(const Checkpoint& file, const std::string& name) {
  std::vector<float> values;
  for (const auto half : read<_Float16>(file, name)) values.push_back(static_cast<float>(half));
  return values;
}

Checkpoint golden(int bits) {
  return Checkpoint::open_file(GRAFT_TEST_DATA "/vectors/gptq_" + std::to_string(bits) +
                               "bit_64x32_g32.safetensors");
}

constexpr std::int64_t kInputs = 64, kOutputs = 32, kGroups = 2;

using Words = std::vector<std::uint32_t>;

std::vector<float> decoded(const Words& qzeros, int bits, ZeroRule rule) {
  std::vector<std::uint16_t> zeros(kGroups * kOutputs);
  for (std::int64_t g = 0; g < kGroups; ++g)
    decode_zeros(qzeros.data() + g * words_for(kOutputs, bits), kOutputs, bits, rule,
                 zeros.data() + g * kOutputs);
  return {zeros.begin(), zeros.end()};
}

}  // namespace

TEST_CASE("every code of GPTQModel's files is read and written at its place") {
  for (const int bits : {2, 3, 4, 8}) {
    const auto file = golden(bits);
    const auto qweight = read<std::uint32_t>(file, "qweight");
    const auto codes = read<std::int32_t>(file, "codes");
    Words again(qweight.size());
    for (std::int64_t k = 0; k < kInputs; ++k)
      for (std::int64_t n = 0; n < kOutputs; ++n) {
        const auto code = static_cast<unsigned>(codes[static_cast<std::size_t>(k * kOutputs + n)]);
        REQUIRE(field(qweight.data() + n, kOutputs, k, bits) == code);
        put_field(again.data() + n, kOutputs, k, bits, code);
      }
    CHECK(again == qweight);
  }
}

TEST_CASE("zero points of v1 and v2 are read, and one turns into the other and back") {
  for (const int bits : {2, 3, 4, 8})
    for (const std::string kind : {"sym", "asym"}) {
      const auto file = golden(bits);
      const auto v1 = read<std::uint32_t>(file, "qzeros_v1_" + kind);
      const auto v2 = read<std::uint32_t>(file, "qzeros_v2_" + kind);
      const auto zeros = read<std::int32_t>(file, "zeros_" + kind);
      const std::vector<float> expected(zeros.begin(), zeros.end());
      CHECK(decoded(v1, bits, ZeroRule::borrowed) == expected);
      CHECK(decoded(v2, bits, ZeroRule::plain) == expected);
      const auto width = words_for(kOutputs, bits);
      auto converted = v1;
      for (std::int64_t g = 0; g < kGroups; ++g) to_plain(converted.data() + g * width, width, bits);
      CHECK(converted == v2);
      for (std::int64_t g = 0; g < kGroups; ++g)
        to_borrowed(converted.data() + g * width, width, bits);
      CHECK(converted == v1);
    }
}

TEST_CASE("AutoGPTQ's zero points of all ones mean one more than a field holds") {
  const Words words{0xFFFFFFF2};
  std::vector<std::uint16_t> zeros(8);
  decode_zeros(words.data(), 8, 4, ZeroRule::unmasked, zeros.data());
  CHECK(zeros == std::vector<std::uint16_t>{3, 16, 16, 16, 16, 16, 16, 16});
}

TEST_CASE(
    "codes that cross words, and a last word that is not full, are read as one stream of bits") {
  std::mt19937 random(9);
  for (const int bits : {2, 3, 4, 8})
    for (const std::int64_t outputs : {1, 10, 11, 21, 22, 33, 37}) {
      CAPTURE(bits);
      CAPTURE(outputs);
      Words words(static_cast<std::size_t>(words_for(outputs, bits)));
      for (auto& word : words) word = static_cast<std::uint32_t>(random());
      std::vector<std::uint16_t> expected, found(static_cast<std::size_t>(outputs));
      for (std::int64_t n = 0; n < outputs; ++n) {
        unsigned code = 0;
        for (int b = 0; b < bits; ++b) {
          const auto at = static_cast<std::size_t>(n * bits + b);
          code |= (words[at / 32] >> (at % 32) & 1U) << b;
        }
        CHECK(field(words.data(), 1, n, bits) == code);
        expected.push_back(static_cast<std::uint16_t>(code));
      }
      decode_zeros(words.data(), outputs, bits, ZeroRule::plain, found.data());
      CHECK(found == expected);
    }
}

TEST_CASE("dequantized weights are those of GPTQModel, in natural and in activation order") {
  for (const int bits : {2, 3, 4, 8}) {
    const auto file = golden(bits);
    const auto qweight = read<std::uint32_t>(file, "qweight");
    const auto scales = read_half(file, "scales");
    for (const auto& [kind, zeros_of, order] :
         {std::tuple{"weight_sym", "sym", "g_idx"}, {"weight_asym", "asym", "g_idx"},
          {"weight_desc_act", "sym", "g_idx_desc_act"}}) {
      const auto zeros = decoded(read<std::uint32_t>(file, std::string("qzeros_v1_") + zeros_of),
                                 bits, ZeroRule::borrowed);
      const auto group = read<std::int32_t>(file, order);
      const auto expected = read<float>(file, kind);
      const Columns all{qweight.data(), kOutputs,      kInputs,       kOutputs, bits,
                        group.data(),   scales.data(), zeros.data()};
      for (const auto kernel : {&dequantize_scalar, dequantize()}) {
        std::vector<float> found(kInputs * kOutputs);
        kernel(all, found.data());
        for (std::size_t k = 0; k < kInputs; ++k)
          for (std::size_t n = 0; n < kOutputs; ++n)
            REQUIRE(static_cast<float>(static_cast<_Float16>(found[k * kOutputs + n])) ==
                    expected[n * kInputs + k]);
      }
    }
  }
}

TEST_CASE("every CPU level dequantizes some columns of an odd matrix to the scalar kernel's bits") {
  std::mt19937 random(5);
  for (const int bits : {2, 3, 4, 8}) {
    constexpr std::int64_t inputs = 70, outputs = 37, groups = 3;
    Words qweight(static_cast<std::size_t>(words_for(inputs, bits) * outputs));
    for (auto& word : qweight) word = static_cast<std::uint32_t>(random());
    std::vector<std::int32_t> group(inputs);
    for (auto& g : group) g = static_cast<std::int32_t>(random() % groups);
    for (const std::int64_t first : {0, 8, 24})
      for (const std::int64_t count : {1, 7, 8, 13}) {
        std::vector<float> scales(groups * count), zeros(groups * count);
        for (auto& scale : scales) scale = static_cast<float>(random()) / 4e9F;
        for (auto& zero : zeros) zero = static_cast<float>(random() % 17);
        const Columns some{qweight.data() + first, outputs,       inputs,      count, bits,
                           group.data(),           scales.data(), zeros.data()};
        std::vector<float> expected(inputs * count), found(inputs * count);
        dequantize_scalar(some, expected.data());
        dequantize()(some, found.data());
        CHECK(found == expected);
      }
  }
}

TEST_CASE("a g_idx is told genuine, in order, stale, negative or out of range") {
  using Kind = GroupIndex::Kind;
  std::vector<std::int64_t> counts(3);
  const auto kind = [&](std::vector<std::int32_t> g_idx, std::int64_t group_size = 2) {
    const auto inputs = static_cast<std::int64_t>(g_idx.size());
    return classify(g_idx.data(), inputs, group_size, (inputs + group_size - 1) / group_size,
                    counts.data());
  };
  CHECK(kind({0, 0, 1, 1, 2, 2}).kind == Kind::in_order);
  CHECK(kind({2, 0, 1, 0, 2, 1}).kind == Kind::genuine);
  CHECK(kind({0, 0, 0, 0, 0, 0}).kind == Kind::uneven);
  CHECK(kind({0, 1, 2, 3, 4, 5}).kind == Kind::rows);
  CHECK(kind({0, 0, 1, 1, 2}).kind == Kind::in_order);
  CHECK(kind({1, 0, 2, 1, 2}).kind == Kind::genuine);  // the short group is one of the writer's
  CHECK(kind({1, 0, 1, 1, 2}).kind == Kind::uneven);
  const auto negative = kind({0, 0, 1, 1, -1, -1});
  CHECK(negative.kind == Kind::negative);
  CHECK(negative.position == 4);
  const auto outside = kind({0, 0, 1, 3, 2, 2});
  CHECK(outside.kind == Kind::out_of_range);
  CHECK(outside.position == 3);
  CHECK(outside.value == 3);
  CHECK(kind({0, 0, 1, 1, 2, -4}).kind == Kind::out_of_range);
  CHECK(kind({0, 0, 0}, 3).kind == Kind::in_order);
}
