#include "text/text_regex.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "graft/error.h"

using graft::Error;
using graft::TextRegex;

namespace {

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  const TextRegex regex(pattern);
  TextRegex::Walk walk(regex, text);
  std::vector<std::string> out;
  for (TextRegex::Match match; walk.next(match);)
    out.emplace_back(text.substr(match.begin, match.end - match.begin));
  return out;
}

using Texts = std::vector<std::string>;

}  // namespace

// The answers are Oniguruma's, through Hugging Face tokenizers 0.23.3.
TEST_CASE("classes mean what they mean in Oniguruma") {
  CHECK(matches(R"(\s)", "a\u180e \u0085\u3000") == Texts{" ", "\u0085", "\u3000"});
  CHECK(matches(R"(\w+)", "a\u0301½ \u24B6_\u200D") == Texts{"a\u0301½", "\u24B6_"});
  CHECK(matches(R"([\w]+)", "a½b") == Texts{"a", "b"});
  CHECK(matches(R"(\p{Han}+)", "中、文") == Texts{"中", "文"});
  CHECK(matches(R"(\p{^L}+)", "a12b") == Texts{"12"});
  CHECK(matches(R"([[:punct:]]+)", "a+$b") == Texts{"+$"});
  CHECK(matches(R"(^.|.$)", "ab\ncd") == Texts{"a", "b", "c", "d"});
  CHECK(matches(R"(\bt|s\b)", "it its t½") == Texts{"s", "t"});
  CHECK(matches("(?i:'s)+", "'S'\u017F") == Texts{"'S'\u017F"});
}

TEST_CASE("an empty match right behind another one does not count") {
  CHECK(matches("x*", "axxb") == Texts{"", "xx", ""});
}

TEST_CASE("what Oniguruma reads differently is refused") {
  for (const char* pattern : {R"(\h)", R"(a{1,2}+)", R"([a-z&&[^b]])", R"([a[bc]])", "(?m:.)",
                              R"([\W])", R"(\pL)", R"(\K)", R"([[:graph:]])"}) {
    CAPTURE(pattern);
    CHECK_THROWS_AS(TextRegex{pattern}, Error);
  }
  CHECK_THROWS_WITH_AS(TextRegex("(a"), doctest::Contains("does not compile"), Error);
  CHECK_THROWS_AS(TextRegex("\\p{Nonsense}"), Error);
  CHECK_THROWS_AS(TextRegex("\\"), Error);
  CHECK_THROWS_AS(TextRegex(std::string(100'000, 'a')), Error);
  CHECK_THROWS_AS(TextRegex(std::string(10'000, '(') + std::string(10'000, ')')), Error);
}

TEST_CASE("catastrophic backtracking ends in an error") {
  CHECK_THROWS_WITH_AS(matches("(a|aa)+$", std::string(100'000, 'a') + "b"),
                       doctest::Contains("cannot be matched against this text"), Error);
  CHECK_THROWS_WITH_AS(matches("(a+)+$", std::string(40, 'a') + "b"),
                       doctest::Contains("cannot be matched against this text"), Error);
}

TEST_CASE("a long run of spaces is no catastrophe") {
  const std::string spaces(300'000, ' ');
  CHECK(matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "x").size() == 2);
}

TEST_CASE("a group that repeats over a long word matches it whole") {
  CHECK(matches("(?:a|bc)+", std::string(200'000, 'a')).size() == 1);
}
