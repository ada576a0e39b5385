#include "text/added_tokens.h"

#include <doctest/doctest.h>

#include <string>

using graft::AddedTokens;

namespace {

/// The texts and ids of a split: "a|5|b".
std::string split(const char* tokens, std::string_view text) {
  AddedTokens added;
  added.add_list(graft::parse_json(tokens), graft::Vocabulary());
  added.finish(graft::Normalizer());
  std::string out;
  const auto put = [&](std::string_view part) {
    if (!out.empty()) out += '|';
    out += part;
  };
  added.split(text, false, put, [&](graft::TokenId id) { put(std::to_string(id)); });
  return out;
}

}  // namespace

TEST_CASE("the leftmost longest added token is found") {
  const char* tokens = R"([{"id": 0, "content": "<a>", "normalized": false},
                           {"id": 1, "content": "<a>b", "normalized": false},
                           {"id": 2, "content": "b<", "normalized": false}])";
  CHECK(split(tokens, "x<a>b<a>y") == "x|1|0|y");
  CHECK(split(tokens, "xb<a>") == "x|2|a>");
  CHECK(split(tokens, "").empty());
}

TEST_CASE("added tokens take the spaces around them when they say so") {
  const char* tokens = R"([{"id": 0, "content": "<l>", "normalized": false, "lstrip": true},
                           {"id": 1, "content": "<r>", "normalized": false, "rstrip": true}])";
  CHECK(split(tokens, "a \u3000<l> b") == "a|0| b");
  CHECK(split(tokens, "a <r>  b") == "a |1|b");
  CHECK(split(tokens, "<r> <l>") == "1|0");
}

TEST_CASE("a single word is not found inside of one") {
  const char* tokens = R"([{"id": 0, "content": "ab", "normalized": false, "single_word": true}])";
  CHECK(split(tokens, "ab abc é-ab") == "0| abc é-|0");
}

TEST_CASE("looking for tokens of spaces in a million spaces is not quadratic") {
  const char* tokens =
      R"([{"id": 0, "content": " ", "normalized": false, "lstrip": true, "rstrip": true},
          {"id": 1, "content": "  ", "normalized": false, "rstrip": true}])";
  CHECK(split(tokens, std::string(1'000'000, ' ')).size() > 0);
}
