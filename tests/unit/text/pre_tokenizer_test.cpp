#include "text/pre_tokenizer.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "graft/value.h"

namespace {

using Texts = std::vector<std::string>;

Texts cut(std::string_view json, std::string_view text, bool at_start = true) {
  const graft::Value value = graft::parse_json(json);
  graft::Pieces pieces{std::string(text), {{0, text.size(), at_start}}};
  graft::PreTokenizer(&value).apply(pieces);
  Texts out;
  for (const auto& piece : pieces.pieces) out.emplace_back(pieces.view(piece));
  return out;
}

std::string split(std::string_view behavior, bool invert = false) {
  return R"({"type": "Split", "pattern": {"String": "-"}, "behavior": ")" + std::string(behavior) +
         R"(", "invert": )" + (invert ? "true" : "false") + "}";
}

}  // namespace

// The answers are those of Hugging Face tokenizers 0.23.3.
TEST_CASE("each behaviour of a split treats its matches as Hugging Face does") {
  CHECK(cut(split("Removed"), "a--b-c-") == Texts{"a", "b", "c"});
  CHECK(cut(split("Isolated"), "a--b-c-") == Texts{"a", "-", "-", "b", "-", "c", "-"});
  CHECK(cut(split("MergedWithPrevious"), "a--b-c-") == Texts{"a-", "-", "b-", "c-"});
  CHECK(cut(split("MergedWithNext"), "a--b-c-") == Texts{"a", "-", "-b", "-c", "-"});
  CHECK(cut(split("Contiguous"), "a--b-c-") == Texts{"a", "--", "b", "-", "c", "-"});
  CHECK(cut(split("Removed", true), "a--b-c-") == Texts{"-", "-", "-", "-"});
}

TEST_CASE("each pre-tokenizer cuts as Hugging Face does") {
  CHECK(cut(R"({"type": "Digits"})", "a12b³") == Texts{"a", "12", "b", "³"});
  CHECK(cut(R"({"type": "Digits", "individual_digits": true})", "a12b") ==
        Texts{"a", "1", "2", "b"});
  CHECK(cut(R"({"type": "Whitespace"})", "a.b  c!? d_é") == Texts{"a", ".", "b", "c", "!?", "d_é"});
  CHECK(cut(R"({"type": "WhitespaceSplit"})", " a\u00a0b\u2003c\u180e ") ==
        Texts{"a", "b", "c\u180e"});
  CHECK(cut(R"({"type": "BertPreTokenizer"})", "don't  stop$ ½") ==
        Texts{"don", "'", "t", "stop", "$", "½"});
  CHECK(cut(R"({"type": "Punctuation", "behavior": "Contiguous"})", "a...b?!c") ==
        Texts{"a", "...", "b", "?!", "c"});
  CHECK(cut(R"({"type": "CharDelimiterSplit", "delimiter": "b"})", "abbac") == Texts{"a", "ac"});
  CHECK(cut(R"({"type": "UnicodeScripts"})", " hi 中かーカ!я") ==
        Texts{"hi ", "中かーカ", "!", "я"});
  CHECK(cut(R"({"type": "FixedLength", "length": 2})", "abcdé") == Texts{"ab", "cd", "é"});
  CHECK(cut(R"({"type": "ByteLevel"})", "I'm 12é\n\n x") ==
        Texts{"ĠI", "'m", "Ġ12", "Ã©", "ĊĊ", "Ġx"});
  CHECK(cut(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})", "a b") ==
        Texts{"aĠb"});
}

TEST_CASE("Metaspace knows its schemes, also by their old names") {
  CHECK(cut(R"({"type": "Metaspace", "replacement": "▁"})", "a  b") == Texts{"▁a", "▁", "▁b"});
  CHECK(cut(R"({"type": "Metaspace", "replacement": "▁", "split": false})", " a b") ==
        Texts{"▁a▁b"});
  const char* never = R"({"type": "Metaspace", "replacement": "▁", "add_prefix_space": false})";
  CHECK(cut(never, "a b") == Texts{"a", "▁b"});
  const char* first = R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})";
  CHECK(cut(first, "a") == Texts{"▁a"});
  CHECK(cut(first, "a", false) == Texts{"a"});
}
