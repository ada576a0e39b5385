#include <ctime>

#include "graft/checkpoint.h"
#include "graft/error.h"

#include "temporary_folder.h"
#include "thrown_by.h"
#include "tiny_safetensors.h"

using namespace graft;
using test::contains;
using test::entry;
using test::safetensors;

namespace {

std::string refused(std::string_view content, const OpenOptions& options = {}) {
  const test::TemporaryFolder folder;
  const auto file = folder.write("model.safetensors", content);
  const auto error = test::thrown_by([&] { Checkpoint::open_file(file, options); });
  CHECK(error.kind() == ErrorKind::model);
  CHECK(contains(error.what(), "model.safetensors: "));
  CHECK(contains(error.what(), "; "));  // behind it stands what to do
  return error.what();
}

Checkpoint opened(std::string_view content) {
  const test::TemporaryFolder folder;
  return Checkpoint::open_file(folder.write("model.safetensors", content));
}

std::string with_length(std::uint64_t length, std::string_view rest) {
  std::string out(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i));
  return out + std::string(rest);
}

}  // namespace

TEST_CASE("a file that is too short for a length is refused") {
  CHECK(contains(refused(""), "expected at least 8 bytes, found 0"));
  CHECK(contains(refused("1234567"), "expected at least 8 bytes, found 7"));
}

TEST_CASE("a header longer than the file is refused without being allocated") {
  CHECK(contains(refused(with_length(std::uint64_t{1} << 63, "{}")),
                 "the header is longer than the file: expected at most 2 bytes, found "
                 "9223372036854775808"));
  CHECK(contains(refused(with_length(3, "{}")), "expected at most 2 bytes, found 3"));
  CHECK(contains(refused(with_length(~std::uint64_t{0}, "{}")), "download it again"));
}

TEST_CASE("a header longer than the format's limit is refused by the limit") {
  const test::TemporaryFolder folder;
  const auto file = folder.write("model.safetensors", with_length(100'000'001, "{}"));
  std::filesystem::resize_file(file, 200'000'000);  // a hole: no byte of it is written
  CHECK(contains(test::message_of([&] { Checkpoint::open_file(file); }),
                 "the header is too long: expected at most 100000000 bytes, found 100000001"));
}

TEST_CASE("a header that does not start as JSON is refused with its first byte") {
  CHECK(contains(refused(safetensors("[]")), "does not start as JSON: expected '{', found '['"));
  CHECK(contains(refused(safetensors(" {}")), "found ' '"));
  CHECK(contains(refused(safetensors("\x1b{}")), "found '\\x1b'"));
  CHECK(contains(refused(safetensors("")), "expected '{', found nothing"));
}

TEST_CASE("a header padded with zeros is refused with the way to repair it") {
  CHECK(contains(refused(safetensors(std::string("{}") + std::string(6, '\0'))),
                 "the header is padded with 0x00: expected spaces; repair the file with `graft "
                 "convert --repair`"));
  CHECK(contains(refused(safetensors(std::string("{\0}", 3))), "zero byte"));
  CHECK(opened(safetensors("{}      ")).tensors().empty());
}

TEST_CASE("invalid UTF-8 in a name is refused") {
  CHECK(contains(
      refused(safetensors("{" + entry("a\xff", "[]", "[0,4]") + "}", 4)),
      "model.safetensors: not valid JSON ('parse error at line 1, column 4: syntax error while "
      "parsing object key - invalid string: ill-formed UTF-8 byte"));
}

TEST_CASE("deep nesting is refused where it starts and takes no stack") {
  const std::string deep(100'000, '[');
  CHECK(contains(refused(safetensors("{\"a\":" + deep + "}")),
                 "tensor 'a': wrong value: expected an object with dtype, shape and data_offsets, "
                 "found a list"));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK(contains(refused(safetensors(objects)), "unknown field 'a'"));
  CHECK(contains(refused(safetensors("{" + entry("a", deep, "[0,4]") + "}", 4)), "wrong shape"));
}

TEST_CASE("a tensor or field that occurs twice is refused") {
  CHECK(contains(refused(safetensors(
                     "{" + entry("a", "[]", "[0,4]") + "," + entry("a", "[]", "[4,8]") + "}", 8)),
                 "tensor 'a': the tensor occurs twice in the header"));
  CHECK(contains(refused(safetensors(R"({"a":{"dtype":"U8","dtype":"U8"}})")),
                 "tensor 'a': dtype occurs twice"));
  CHECK(contains(refused(safetensors(R"({"__metadata__":{"a":"b","a":"c"}})")),
                 "'__metadata__': the key 'a' occurs twice"));
  CHECK(contains(refused(safetensors(R"({"__metadata__":{},"__metadata__":{}})")), "occurs twice"));
}

TEST_CASE("a range that ends before it begins is refused") {
  CHECK(contains(refused(safetensors("{" + entry("a", "[1]", "[8,4]") + "}", 8)),
                 "tensor 'a': the data range ends before it begins: expected [begin, end] with "
                 "begin <= end, found [8, 4]"));
}

TEST_CASE("overlapping ranges are refused, naming both tensors") {
  CHECK(contains(
      refused(safetensors(
          "{" + entry("a", "[2]", "[0,8]") + "," + entry("b", "[2]", "[4,12]") + "}", 12)),
      "tensor 'b': the data overlaps that of tensor 'a': expected a range from 8, found 4"));
}

TEST_CASE("holes and bytes behind the last tensor are refused") {
  CHECK(
      contains(refused(safetensors(
                   "{" + entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[8,12]") + "}", 12)),
               "tensor 'b': there is a hole before the data: expected a range from 4, found 8"));
  CHECK(contains(refused(safetensors("{" + entry("a", "[1]", "[0,4]") + "}", 5)),
                 "there are bytes after the last tensor: expected 4 bytes of data, found 5"));
}

TEST_CASE("a file that was cut short says how much it needs") {
  CHECK(contains(refused(safetensors("{" + entry("a", "[25]", "[0,100]") + "}", 99)),
                 "the file is cut short: expected 100 bytes of data, found 99; the file is damaged "
                 "or incomplete: download it again"));
}

TEST_CASE("a shape whose product overflows is refused, even to zero") {
  CHECK(contains(refused(safetensors("{" + entry("a", "[4294967296,4294967296]", "[0,0]") + "}")),
                 "tensor 'a': the tensor is too large: expected less than 2^63 bytes, found F32 "
                 "[4294967296, 4294967296]"));
  CHECK(contains(
      refused(safetensors("{" + entry("a", "[0,9223372036854775807,9223372036854775807]", "[0,0]") +
                          "}")),
      "the tensor is too large"));
}

TEST_CASE("dimensions that are no whole numbers are refused") {
  for (const std::string dimension : {"-1", "1.5", "1e400", "-0", "1e2", "18446744073709551615",
                                      "9223372036854775808", "true", "null", "\"4\""}) {
    CAPTURE(dimension);
    const auto text =
        refused(safetensors("{" + entry("a", "[" + dimension + "]", "[0,4]") + "}", 4));
    CHECK(contains(text,
                   dimension == "1e400"
                       ? "tensor 'a': not valid JSON ('number overflow parsing '1e400'')"
                       : "tensor 'a': wrong shape: expected a whole number from 0 to 2^63 - 1"));
  }
}

TEST_CASE("offsets that are no whole numbers or no pair are refused") {
  for (const std::string offsets : {"[-1,4]", "[0.0,4]", "[0]", "[0,4,8]", "[]", "4", "[0,null]"}) {
    CAPTURE(offsets);
    CHECK(
        contains(refused(safetensors("{" + entry("a", "[1]", offsets) + "}", 4)), "tensor 'a': "));
  }
  CHECK(contains(refused(safetensors("{" + entry("a", "[1]", "[0]") + "}", 4)),
                 "data_offsets is incomplete: expected [begin, end], found 1 numbers"));
  CHECK(contains(refused(safetensors("{" + entry("a", "[1]", "[0.5,4]") + "}", 4)),
                 "wrong data_offsets: expected a whole number of bytes, found '0.5'"));
  CHECK(contains(refused(safetensors("{" + entry("a", "[1]", "[18446744073709551612,0]") + "}", 4)),
                 "ends before it begins"));
}

TEST_CASE("a range that does not fit dtype and shape is refused with both") {
  CHECK(contains(refused(safetensors("{" + entry("a", "[4,4]", "[0,60]") + "}", 60)),
                 "tensor 'a': the data range does not fit the shape: expected 64 bytes for F32 "
                 "[4, 4], found 60"));
}

TEST_CASE("an unknown dtype is refused with those that are known") {
  const auto text = refused(safetensors("{" + entry("a", "[1]", "[0,4]", "F6_X") + "}", 4));
  CHECK(contains(text, "tensor 'a': unsupported dtype: expected one of BOOL, U8,"));
  CHECK(contains(text, "found 'F6_X'"));
}

TEST_CASE("a dimension of zero is an empty tensor") {
  const auto checkpoint = opened(
      safetensors("{" + entry("a", "[0,7]", "[0,0]") + "," + entry("b", "[1]", "[0,4]") + "}", 4));
  CHECK(checkpoint.at("a").bytes == 0);
  CHECK(checkpoint.at("a").shape == std::vector<std::int64_t>{0, 7});
}

TEST_CASE("more dimensions than LibTorch can handle are refused") {
  std::string shape = "[1";
  for (int i = 1; i < 200; ++i) shape += ",1";
  CHECK(contains(refused(safetensors("{" + entry("a", shape + "]", "[0,4]") + "}", 4)),
                 "tensor 'a': the shape has too many dimensions: expected at most 64, found more"));
  std::string fits = "[1";
  for (int i = 1; i < 64; ++i) fits += ",1";
  CHECK(opened(safetensors("{" + entry("a", fits + "]", "[0,4]") + "}", 4)).at("a").shape.size() ==
        64);
}

TEST_CASE("a million tensors are read, and the limit can be set") {
  const auto header_of = [](int count) {
    std::string header = "{";
    for (int i = 0; i < count; ++i)
      header += (i ? "," : "") + entry(std::to_string(i), "[0]", "[0,0]", "U8");
    return header + "}";
  };
  const auto seconds = [&](int count) {
    const std::string file = safetensors(header_of(count));
    const std::clock_t start = std::clock();
    CHECK(opened(file).tensors().size() == static_cast<std::size_t>(count));
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  };
  // Of the processor, so that a busy machine does not count: 16 times as long would be quadratic.
  CHECK(seconds(1'000'000) < 10 * seconds(250'000));
  const std::string header = header_of(2000);
  OpenOptions few;
  few.max_tensors = 1000;
  CHECK(contains(refused(safetensors(header), few),
                 "the header lists too many tensors: expected at most 1000"));
}

TEST_CASE("a tensor's name is opaque text, escaped in messages and never a path") {
  const auto checkpoint =
      opened(safetensors("{" + entry("../../x", "[1]", "[0,4]") + "," +
                             entry("\\u001b[31m\\n\\u0000", "[1]", "[4,8]") + "}",
                         8));
  CHECK(checkpoint.find("../../x") != nullptr);
  CHECK(checkpoint.find(std::string_view("\x1b[31m\n\0", 7)) != nullptr);
  CHECK(contains(refused(safetensors("{" + entry("\\u001b[31m", "[1]", "[0,8]") + "}", 8)),
                 "tensor '\\x1b[31m': "));
  CHECK(contains(refused(safetensors("{" + entry("../x\\n\\u0000", "[1]", "[0,8]") + "}", 8)),
                 "tensor '../x\\x0a\\x00': "));
}

TEST_CASE("what is no safetensors file is recognised") {
  CHECK(contains(
      refused("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
      "this is a Git LFS pointer, not the weights; fetch the weights with `git lfs pull`"));
  CHECK(contains(refused("<!DOCTYPE html><html>not found</html>"), "this looks like HTML"));
  CHECK(contains(refused("\n <HTML><head>"), "this looks like HTML"));
  CHECK(contains(refused("PK\x03\x04....................."), "this is a PyTorch pickle"));
  CHECK(contains(refused(std::string("GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0", 16)), "`graft import`"));
}

TEST_CASE("data that lies unaligned is read") {
  const test::TemporaryFolder folder;
  const auto file = folder.write(
      "model.safetensors",
      safetensors("{" + entry("a", "[1]", "[0,1]", "U8") + "," + entry("b", "[2]", "[1,9]") + "}",
                  9));
  const auto checkpoint = Checkpoint::open_file(file);
  std::uint8_t bytes[8] = {};
  checkpoint.read(checkpoint.at("b"), bytes);
  for (std::uint8_t i = 0; i < 8; ++i) CHECK(bytes[i] == i + 1);
  checkpoint.read(checkpoint.at("b"), 3, 2, bytes);
  CHECK((bytes[0] == 4 && bytes[1] == 5));
}

TEST_CASE("fields and values that the format does not have are refused") {
  CHECK(contains(
      refused(safetensors(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})")),
      "tensor 'a': unknown field 'x': expected dtype, shape and data_offsets"));
  CHECK(contains(refused(safetensors(R"({"a":{"dtype":"U8","shape":[0]}})")),
                 "tensor 'a': data_offsets is missing"));
  CHECK(contains(refused(safetensors(R"({"__metadata__":{"a":1}})")),
                 "'__metadata__': wrong value: expected a string, found 1"));
  CHECK(contains(refused(safetensors("{} x")), "not valid JSON"));
  CHECK(contains(refused(safetensors("{")), "not valid JSON"));
}

TEST_CASE("a header of random bytes is refused or read, nothing else") {
  std::uint64_t state = 7;
  const std::string good =
      "{" + entry("a", "[2]", "[0,8]") + "," + entry("b", "[1]", "[8,12]") + "}";
  const test::TemporaryFolder folder;
  for (int round = 0; round < 2000; ++round) {
    std::string file = safetensors(good, 12);
    for (int flips = 0; flips < 3; ++flips) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      file[(state >> 40) % file.size()] = static_cast<char>(state >> 32);
    }
    const auto path = folder.write("x.safetensors", file);
    try {
      Checkpoint::open_file(path);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::model);
    }
  }
}
