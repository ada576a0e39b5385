#include "kernels/four_bit.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "graft/checkpoint.h"
#include "kernels/cpu_level.h"

using namespace graft;
using namespace graft::bnb;

namespace {

template <class T>
std::vector<T> read(const Checkpoint& file, const std::string& name) {
  const auto& info = file.at(name);
  std::vector<T> values(info.bytes / sizeof(T));
  file.read(info, values.data());
  return values;
}

float from_half(std::uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof(half));
  return static_cast<float>(half);
}

std::vector<float> read_half(const Checkpoint& file, const std::string& name) {
  std::vector<float> values;
  for (const auto bits : read<std::uint16_t>(file, name)) values.push_back(from_half(bits));
  return values;
}

Checkpoint golden() {
  return Checkpoint::open_file(GRAFT_TEST_DATA "/vectors/bnb_4bit_64x128.safetensors");
}

}  // namespace

TEST_CASE("the dynamic map of absmax codes is that of bitsandbytes, bit for bit") {
  const auto expected = read<float>(golden(), "dynamic_map");
  REQUIRE(expected.size() == 256);
  for (std::size_t i = 0; i < 256; ++i) CHECK(dynamic_map()[i] == expected[i]);
}

TEST_CASE("4-bit quantization gives the bytes and absmax of bitsandbytes") {
  const auto file = golden();
  const auto x = read_half(file, "input");
  for (const auto type : {QuantType::nf4, QuantType::fp4}) {
    const std::string name = type == QuantType::nf4 ? "nf4" : "fp4";
    const auto count = static_cast<std::int64_t>(x.size());
    std::vector<std::uint8_t> packed(x.size() / 2);
    std::vector<float> absmax(x.size() / 64);
    quantize_blocks(x.data(), count, 64, type, 0, count / 64, packed.data(), absmax.data());
    CHECK(packed == read<std::uint8_t>(file, name + ".weight"));
    CHECK(absmax == read<float>(file, name + ".weight.absmax"));
    const auto table = read<float>(file, name + ".weight.quant_map");
    for (std::size_t i = 0; i < 16; ++i) CHECK(code_table(type)[i] == table[i]);
  }
}

TEST_CASE("a value on a threshold goes to the lower code") {
  const auto file = golden();
  for (const auto& [input, output, type] :
       {std::tuple{"nf4_ties.input", "nf4_ties.packed", QuantType::nf4},
        std::tuple{"fp4_edge.input", "fp4_edge.packed_cpu", QuantType::fp4}}) {
    const auto x = read<float>(file, input);
    std::vector<std::uint8_t> packed(x.size() / 2);
    std::vector<float> absmax(1);
    quantize_blocks(x.data(), static_cast<std::int64_t>(x.size()), 64, type, 0, 1, packed.data(),
                    absmax.data());
    CHECK(packed == read<std::uint8_t>(file, output));
  }
}

TEST_CASE("every CPU level dequantizes to the bits of the scalar kernel, wherever a run starts") {
  std::mt19937 random(7);
  std::vector<std::uint8_t> packed(4096);
  for (auto& byte : packed) byte = static_cast<std::uint8_t>(random());
  std::vector<float> absmax(256);
  for (auto& scale : absmax) scale = static_cast<float>(random()) / 4e9F;
  const float* table = code_table(QuantType::nf4).data();
  for (const std::int64_t blocksize : {32, 64, 256})
    for (const std::int64_t begin : {0, 1, 7, 16, 31, 95, 96, 1000})
      for (const std::int64_t count : {1, 15, 16, 17, 96, 2049}) {
        std::vector<float> expected(static_cast<std::size_t>(count)), found(expected.size());
        dequantize_blocks_scalar(packed.data(), table, absmax.data(), blocksize, begin, count,
                                 expected.data());
        dequantize_blocks()(packed.data(), table, absmax.data(), blocksize, begin, count,
                            found.data());
        CHECK(found == expected);
      }
}

TEST_CASE("a nested absmax decodes to what bitsandbytes dequantizes with") {
  const auto file = golden();
  const auto codes = read<std::uint8_t>(file, "nf4_dq.weight.absmax");
  const auto map = read<float>(file, "nf4_dq.weight.nested_quant_map");
  const auto nested = read<float>(file, "nf4_dq.weight.nested_absmax");
  const auto blob = read<char>(file, "nf4_dq.weight.quant_state.bitsandbytes__nf4");
  const auto json = parse_json({blob.data(), blob.size()});
  const auto count = static_cast<std::int64_t>(codes.size());
  std::vector<float> absmax(codes.size());
  dequantize_nested(codes.data(), count, map.data(), nested.data(), 256,
                    static_cast<float>(json.at("nested_offset").as_double()), absmax.data());
  const auto packed = read<std::uint8_t>(file, "nf4_dq.weight");
  const auto expected = read<std::uint16_t>(file, "nf4_dq.dequant");
  std::vector<float> weight(packed.size() * 2);
  dequantize_blocks()(packed.data(), code_table(QuantType::nf4).data(), absmax.data(), 64, 0,
                      static_cast<std::int64_t>(weight.size()), weight.data());
  for (std::size_t i = 0; i < weight.size(); ++i)
    REQUIRE(static_cast<float>(static_cast<_Float16>(weight[i])) == from_half(expected[i]));
}
