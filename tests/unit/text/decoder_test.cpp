#include "text/decoder.h"

#include <doctest/doctest.h>

#include "graft/value.h"

namespace {

std::string decoded(std::string_view json, std::vector<std::string> tokens) {
  const graft::Value value = graft::parse_json(json);
  return graft::Decoder(&value).apply(std::move(tokens));
}

}  // namespace

// The answers are those of Hugging Face tokenizers 0.23.3, but where it panics.
TEST_CASE("each decoder joins tokens as Hugging Face does") {
  CHECK(graft::Decoder(nullptr).apply({"a", "b"}) == "a b");
  CHECK(decoded(R"({"type": "WordPiece"})", {"hello", "##ing", ",", "##", "do", "not", ".", "a",
                                             "' "}) == "helloing, do not. a'");
  CHECK(decoded(R"({"type": "WordPiece", "cleanup": false})", {"a", "##b", "."}) == "ab .");
  CHECK(decoded(R"({"type": "ByteFallback"})", {"<0xE2>", "<0x82>", "<0xAC>", "x", "<0xE2>",
                                                "<0x82>", "<0xzz>"}) == "€x\uFFFD\uFFFD<0xzz>");
  CHECK(decoded(R"({"type": "Metaspace", "replacement": "▁"})", {"▁▁a", "▁b"}) == "a b");
  CHECK(decoded(R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})",
                {"▁a", "▁b"}) == " a b");
  CHECK(decoded(R"({"type": "BPEDecoder"})", {"ab</w>", "c</w>"}) == "ab c");
  CHECK(decoded(R"({"type": "CTC"})", {"<pad>", "h", "h", "<pad>", "h", "|", "i"}) == "hh i");
  CHECK(decoded(R"({"type": "Strip", "content": " ", "start": 1, "stop": 1})", {"  a ", " ", ""}) ==
        " a");
  CHECK(decoded(R"({"type": "ByteLevel"})", {"Ġa", "Ã©", "<s>", "Ã"}) == " aé<s>\uFFFD");
  CHECK(decoded(R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace",
                    "pattern": {"String": "ab"}, "content": "c"}]})",
                {"a", "b"}) == "c");
}
