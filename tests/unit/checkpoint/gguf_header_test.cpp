#include "checkpoint/gguf_header.h"

#include <doctest/doctest.h>

#include "gguf_bytes.h"
#include "graft/error.h"

using namespace graft;
using namespace graft::test;

namespace {

std::string refused(const std::string& bytes) {
  return refusal([&] { parse_gguf(bytes); });
}

GgufBytes two_tensors() { return GgufBytes().tensor("a", {3, 2}).tensor("b", {5}); }

}  // namespace

TEST_CASE("metadata and tensors of versions 2 and 3 are read") {
  for (const std::uint32_t version : {2u, 3u}) {
    auto file = two_tensors();
    file.version = version;
    file.set("i", GgufType::i16, le<std::int16_t>(-7))
        .f32("f", 0.5f)
        .flag("t", true)
        .text("s", "text")
        .texts("l", {"", "two"})
        .set("n", GgufType::array, gguf_array(GgufType::i8, 2, "\xFF\x02"));
    const GgufHeader header = parse_gguf(file.file());
    CHECK(header.at("i").as_double() == -7);
    CHECK(header.at("f").as_double() == 0.5);
    CHECK(header.at("t").as_bool());
    CHECK(header.at("s").as_string() == "text");
    CHECK((header.at("l").as_strings() == std::vector<std::string_view>{"", "two"}));
    CHECK((header.at("n").as_integers() == std::vector<std::int64_t>{-1, 2}));
    CHECK(header.find("x") == nullptr);
    REQUIRE(header.tensors().size() == 2);
    const GgufTensor* a = header.find_tensor("a");
    REQUIRE(a);
    CHECK((a->shape == std::vector<std::int64_t>{2, 3}));
    CHECK(a->bytes == 24);
    CHECK(header.find_tensor("b")->offset == a->offset + 32);
    CHECK(header.find_tensor("c") == nullptr);
  }
}

TEST_CASE("a header that is not there yet is asked for, one that the file ends in is refused") {
  const auto file = two_tensors().text("key", "value");
  const std::string bytes = file.file();
  const std::size_t header_size = file.header().size();
  const std::size_t needed = bytes.size() - 12;  // the padding at the end may be missing
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    const auto start = std::make_shared<const std::string>(bytes.substr(0, size));
    CHECK(parse_gguf_header(start, bytes.size()).has_value() == (size >= header_size));
    const char* why = size < header_size ? "the file ends inside" : "outside of the file";
    CHECK((size >= needed ? refused(*start).empty() : contains(refused(*start), why)));
  }
}

TEST_CASE("other files are refused by what they are") {
  CHECK(contains(refused(""), "the file ends inside the first four bytes"));
  CHECK(contains(refused("version https://git-lfs"), "Git LFS pointer"));
  CHECK(contains(refused("PK\x03\x04...."), "this is not a GGUF file"));
  auto file = two_tensors();
  file.version = 0x03000000;
  CHECK(contains(refused(file.file()), "big-endian"));
  file.version = 1;
  CHECK(contains(refused(file.file()), "unsupported version of GGUF: expected 2 or 3, found 1"));
  file.version = 4;
  CHECK(contains(refused(file.file()), "found 4"));
}

TEST_CASE("counts and lengths that cannot be are refused before memory is taken") {
  const std::string start = "GGUF" + le<std::uint32_t>(3);
  const auto huge = ~std::uint64_t{0};
  CHECK(contains(refused(start + le(huge) + le(huge)), "too many tensors"));
  CHECK(contains(refused(start + le<std::uint64_t>(0) + le(huge)), "too many keys"));
  const std::string one_key = start + le<std::uint64_t>(0) + le<std::uint64_t>(1);
  CHECK(contains(refused(one_key + le(huge)), "a key of the metadata has an impossible length"));
  CHECK(contains(refused(one_key + le<std::uint64_t>(0)), "impossible length"));
  CHECK(contains(refused(one_key + gguf_text("\xFF") + le<std::uint32_t>(4)), "not UTF-8"));
  const std::string key = one_key + gguf_text("k");
  CHECK(contains(refused(key + le<std::uint32_t>(13)), "unknown type of metadata"));
  CHECK(contains(refused(key + le<std::uint32_t>(8) + le(huge)), "the file ends inside a string"));
  CHECK(contains(refused(key + le<std::uint32_t>(9) + gguf_array(GgufType::u64, huge / 8 + 2, "")),
                 "'k': an array does not fit the file"));
  CHECK(contains(refused(key + le<std::uint32_t>(9) + gguf_array(GgufType::string, huge, "")),
                 "the file ends inside a string"));
  CHECK(contains(refused(key + le<std::uint32_t>(9) + gguf_array(GgufType::array, huge, "")),
                 "the file ends inside"));
}

TEST_CASE("arrays nest a little and bools are 0 or 1") {
  auto nested = gguf_array(GgufType::u8, 1, "x");
  for (int depth = 1; depth < 4; ++depth) nested = gguf_array(GgufType::array, 1, nested);
  CHECK(refused(GgufBytes().set("k", GgufType::array, nested).file()) == "");
  nested = gguf_array(GgufType::array, 1, nested);
  CHECK(contains(refused(GgufBytes().set("k", GgufType::array, nested).file()), "too deeply"));
  CHECK(contains(refused(GgufBytes().set("k", GgufType::boolean, "\x02").file()),
                 "'k': a bool is neither 0 nor 1"));
  CHECK(
      contains(refused(GgufBytes()
                           .set("k", GgufType::array, gguf_array(GgufType::boolean, 2, "\x01\x02"))
                           .file()),
               "a bool is neither"));
}

TEST_CASE("keys and tensors occur once") {
  auto file = two_tensors().text("k", "1");
  file.metadata.push_back(file.metadata.front());
  CHECK(contains(refused(file.file()), "the key 'k' occurs twice"));
  CHECK(contains(refused(two_tensors().tensor("a", {1}).file()), "the tensor 'a' occurs twice"));
}

TEST_CASE("shapes that cannot be are refused") {
  const auto with = [](std::vector<std::uint64_t> sizes, std::uint32_t format) {
    GgufBytes file;
    file.tensors.push_back({"t", std::move(sizes), format, std::string(64, '\0')});
    return refused(file.file());
  };
  CHECK(contains(with({}, 0), "tensor 't': impossible number of dimensions"));
  CHECK(contains(with({1, 1, 1, 1, 1}, 0), "impossible number of dimensions"));
  CHECK(contains(with({4, 0}, 0), "a dimension is 0"));
  const std::uint64_t half = std::uint64_t{1} << 32;
  CHECK(contains(with({half, half}, 0), "the shape is too large"));
  CHECK(contains(with({half, half / 4}, 0), "the shape is too large"));
  CHECK(contains(with({std::uint64_t{1} << 63}, 0), "the shape is too large"));
  CHECK(contains(with({33}, 2), "rows are not whole blocks: expected a multiple of 32 for Q4_0"));
  CHECK(contains(with({256}, 10), "expected one of F32, F16, Q4_0"));
  CHECK(contains(with({256}, 10), "found Q2_K"));
  CHECK(contains(with({256}, 4), "found number 4"));
  CHECK(contains(with({256}, 0xFFFFFFFF), "found number 4294967295"));
}

TEST_CASE("data is aligned, in the file, without overlap, hole or rest") {
  const auto moved = [](std::int64_t by) {
    auto file = two_tensors();
    file.tensors[1].moved = by;
    return refused(file.file());
  };
  CHECK(moved(0) == "");
  CHECK(contains(moved(-32), "tensor 'b': the data overlaps that of 'a'"));
  CHECK(contains(moved(4), "tensor 'b': the data is not aligned"));
  CHECK(contains(moved(32), "tensor 'b': the data lies outside of the file"));
  CHECK(contains(moved(-64), "tensor 'b': the data lies outside of the file"));
  const std::string good = two_tensors().file();
  CHECK(contains(refused(good + std::string(32, '\0')), "bytes behind the last tensor"));
  CHECK(refused(good.substr(0, good.size() - 12)) == "");  // padding at the end may be missing
  CHECK(contains(refused(good.substr(0, good.size() - 13)), "outside of the file"));
  auto hole = two_tensors();
  hole.tensors[1].moved = 32;
  CHECK(contains(refused(hole.file() + std::string(32, '\0')), "there is a hole before the data"));
}

TEST_CASE("alignment comes from the metadata") {
  auto file = two_tensors().u32("general.alignment", 64);
  file.alignment = 64;
  const GgufHeader header = parse_gguf(file.file());
  CHECK(header.tensors()[0].offset % 64 == 0);
  CHECK(header.tensors()[1].offset - header.tensors()[0].offset == 64);
  for (const std::uint32_t bad : {0u, 1u, 24u, 1u << 21})
    CHECK(contains(refused(two_tensors().u32("general.alignment", bad).file()),
                   "'general.alignment': impossible alignment"));
  CHECK(contains(refused(two_tensors().text("general.alignment", "32").file()), "found '32'"));
}

TEST_CASE("a value of another type is named") {
  const GgufHeader header = parse_gguf(
      GgufBytes().set("n", GgufType::i32, le(-3)).f32("f", 1.5f).texts("l", {"a"}).file());
  CHECK(contains(refusal([&] { header.at("n").as_unsigned(); }),
                 "expected an integer that is not negative, found the i32 -3"));
  CHECK(contains(refusal([&] { header.at("f").as_unsigned(); }), "found the f32 1.5"));
  CHECK(contains(refusal([&] { header.at("l").as_string(); }), "found an array of 1 string"));
  CHECK(contains(refusal([&] { header.at("l").as_integers(); }), "an array of integers"));
  CHECK(contains(refusal([&] { header.at("n").as_bool(); }), "expected a bool"));
  CHECK(contains(refusal([&] { header.at("x"); }), "the metadata has no 'x'"));
}
