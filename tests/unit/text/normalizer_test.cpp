#include "text/normalizer.h"

#include <doctest/doctest.h>

#include "graft/value.h"

namespace {

std::string normalized(std::string_view json, std::string text) {
  const graft::Value value = graft::parse_json(json);
  graft::Normalizer(&value).apply(text);
  return text;
}

}  // namespace

// The answers are those of Hugging Face tokenizers 0.23.3.
TEST_CASE("each normalizer rewrites text as Hugging Face does") {
  CHECK(normalized(R"({"type": "BertNormalizer"})", "\tÉa\u200d中b\u0301İ") == " ea 中 bi");
  CHECK(normalized(R"({"type": "BertNormalizer", "lowercase": false})", "Éa") == "Éa");
  CHECK(normalized(R"({"type": "Strip"})", "\u3000 a b\n") == "a b");
  CHECK(normalized(R"({"type": "Strip", "strip_right": false})", " a ") == "a ");
  CHECK(normalized(R"({"type": "StripAccents"})", "e\u0301é\u20dd") == "eé");
  CHECK(normalized(R"({"type": "Nmt"})", "a\u200bb\u0007c\ufeff") == "a bc ");
  CHECK(normalized(R"({"type": "NFC"})", "e\u0301") == "é");
  CHECK(normalized(R"({"type": "NFD"})", "é각") == "e\u0301\u1100\u1161\u11a8");
  CHECK(normalized(R"({"type": "NFKC"})", "ﬁ①Å") == "fi1Å");
  CHECK(normalized(R"({"type": "NFKD"})", "ﬁé") == "fie\u0301");
  CHECK(normalized(R"({"type": "Lowercase"})", "ΑΣİ") == "ασi\u0307");
  CHECK(normalized(R"({"type": "ByteLevel"})", "é b") == "Ã©Ġb");
  CHECK(normalized(R"({"type": "Prepend", "prepend": "▁"})", "a") == "▁a");
  CHECK(normalized(R"({"type": "Prepend", "prepend": "▁"})", "").empty());
  CHECK(normalized(R"({"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": "_"})",
                   " a  b") == "_a_b");
  CHECK(normalized(R"({"type": "Replace", "pattern": {"String": "."}, "content": "$0"})", "a.b") ==
        "a$0b");
}

TEST_CASE("characters that are newer than Hugging Face's tables are not normalized") {
  CHECK(normalized(R"({"type": "NFKC"})", "\u32FF") == "\u32FF");
  CHECK(normalized(R"({"type": "NFC"})", "\u1DCE\u1DFA") == "\u1DCE\u1DFA");
}

TEST_CASE("normalizers of a sequence run in their order") {
  CHECK(normalized(R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "A"},
                       {"type": "Sequence", "normalizers": []}, {"type": "Lowercase"}]})",
                   "B") == "ab");
}
