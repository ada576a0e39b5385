#include "text/subword_model.h"

#include <doctest/doctest.h>

#include <random>

#include "graft/error.h"
#include "graft/value.h"

using graft::TokenId;

namespace {

using Ids = std::vector<TokenId>;

Ids encode(std::string_view model, std::string_view piece) {
  graft::Value value = graft::parse_json(model);
  Ids ids;
  graft::make_subword_model(value)->encode(piece, ids);
  return ids;
}

}  // namespace

TEST_CASE("BPE merges the pair of lowest rank first, the leftmost of equals") {
  const char* model = R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4,
                          "aa": 5}, "merges": ["b c", ["a", "b"], "a a"]})";
  CHECK(encode(model, "abc") == Ids{0, 4});
  CHECK(encode(model, "ab") == Ids{3});
  CHECK(encode(model, "aaa") == Ids{5, 0});
}

TEST_CASE("BPE treats unknown characters as its settings say") {
  const std::string head = R"({"type": "BPE", "vocab": {"a": 0, "<unk>": 1, "<0xC3>": 2,
                               "<0xA9>": 3}, "merges": [])";
  CHECK(encode(head + "}", "aéßa") == Ids{0, 0});
  CHECK(encode(head + R"(, "unk_token": "<unk>"})", "aéßa") == Ids{0, 1, 1, 0});
  CHECK(encode(head + R"(, "unk_token": "<unk>", "fuse_unk": true})", "aéßa") == Ids{0, 1, 0});
  CHECK(encode(head + R"(, "unk_token": "<unk>", "byte_fallback": true})", "aéß") ==
        Ids{0, 2, 3, 1});
}

TEST_CASE("BPE knows prefixes, suffixes and whole words") {
  const char* decorated = R"({"type": "BPE", "vocab": {"a": 0, "##b": 1, "##b</w>": 2,
      "ab</w>": 3, "a</w>": 4}, "merges": ["a ##b</w>"], "continuing_subword_prefix": "##",
      "end_of_word_suffix": "</w>"})";
  CHECK(encode(decorated, "ab") == Ids{3});
  CHECK(encode(decorated, "abb") == Ids{0, 1, 2});
  CHECK(encode(decorated, "a") == Ids{4});
  const char* whole = R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [],
                          "ignore_merges": true})";
  CHECK(encode(whole, "ab") == Ids{2});
  CHECK(encode(whole, "aba") == Ids{0, 1, 0});
}

TEST_CASE("BPE merges long and short pieces alike") {
  // Above a few symbols another algorithm merges: a piece that no merge crosses at its seams has
  // the tokens of its parts.
  const char* model = R"({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3, "aba": 4,
      "abab": 5, "-": 6, "aa": 7, "bb": 8, "bba": 9}, "merges": ["b a", "a b", "a ba", "ab ab",
      "b b", "a a", "bb a"]})";
  std::mt19937 random(1);
  std::string all;
  Ids expected;
  for (int i = 0; i < 200; ++i) {
    std::string part = "-";
    for (auto length = random() % 20; length > 0; --length) part += random() % 2 ? 'a' : 'b';
    for (const TokenId id : encode(model, part)) expected.push_back(id);
    all += part;
  }
  CHECK(encode(model, all) == expected);
}

TEST_CASE("WordPiece takes the longest token or gives up on the word") {
  const std::string vocab = R"("vocab": {"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "u": 4,
                                         "##é": 5}})";
  const std::string model = R"({"type": "WordPiece", )" + vocab;
  CHECK(encode(model, "unaffable") == Ids{1, 2, 3});
  CHECK(encode(model, "ué") == Ids{4, 5});
  CHECK(encode(model, "unx") == Ids{0});
  CHECK(encode(model, std::string(101, 'u')) == Ids{0});
  CHECK(encode(R"({"type": "WordPiece", "max_input_chars_per_word": 2, )" + vocab, "ué") ==
        Ids{4, 5});
}

TEST_CASE("Unigram takes the split of the highest score") {
  const std::string vocab = R"("vocab": [["<unk>", 0], ["a", 0], ["b", 0], ["c", 0], ["d", 0],
      ["cd", 1], ["ab", 2], ["abc", 5], ["abcd", 10], ["<0xC3>", 0], ["<0xA9>", 0]])";
  const std::string model = R"({"type": "Unigram", "unk_id": 0, )" + vocab + "}";
  CHECK(encode(model, "abcdacdxx") == Ids{8, 1, 5, 0});
  CHECK(encode(R"({"type": "Unigram", "unk_id": 0, "byte_fallback": true, )" + vocab + "}", "aé") ==
        Ids{1, 9, 10});
  CHECK_THROWS_WITH_AS(encode(R"({"type": "Unigram", )" + vocab + "}", "x"),
                       "the vocabulary has neither 'x' nor an unknown token", graft::Error);
}
