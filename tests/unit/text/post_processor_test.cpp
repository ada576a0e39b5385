#include "text/post_processor.h"

#include <doctest/doctest.h>

#include "graft/error.h"

using Ids = std::vector<graft::TokenId>;

TEST_CASE("post-processors put ids around those of the text, the later ones outside") {
  const graft::Value value = graft::parse_json(R"({"type": "Sequence", "processors": [
      {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
      {"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "x"}},
       {"Sequence": {"id": "A"}}], "special_tokens": {"x": {"id": "x", "ids": [7, 8]}}},
      {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": true,
       "add_prefix_space": false}]})");
  const auto made = graft::make_post_processor(&value);
  CHECK(made.before == Ids{1, 7, 8});
  CHECK(made.behind == Ids{2});
}

TEST_CASE("a template that adds ids without end is refused") {
  std::string ids = "1";
  for (int i = 0; i < 2000; ++i) ids += ",1";
  const graft::Value value = graft::parse_json(
      R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}},
          {"Sequence": {"id": "A"}}], "special_tokens": {"x": {"ids": [)" +
      ids + "]}}}");
  CHECK_THROWS_WITH_AS(graft::make_post_processor(&value), doctest::Contains("more than 1024 ids"),
                       graft::Error);
}
