#include "text/utf8.h"

#include <doctest/doctest.h>

TEST_CASE("each maximal broken part of UTF-8 becomes one U+FFFD") {
  CHECK(graft::to_valid_utf8("aé€👧") == "aé€👧");
  CHECK(graft::to_valid_utf8("\x80") == "\uFFFD");
  CHECK(graft::to_valid_utf8("\xC0\xAF") == "\uFFFD\uFFFD");
  CHECK(graft::to_valid_utf8("\xE2\x82") == "\uFFFD");
  CHECK(graft::to_valid_utf8("\xE2\x82z") == "\uFFFDz");
  CHECK(graft::to_valid_utf8("\xED\xA0\x80") == "\uFFFD\uFFFD\uFFFD");
  CHECK(graft::to_valid_utf8("\xF0\x9F\x91\xF0\x9F\x91\xA7") == "\uFFFD👧");
  CHECK(graft::to_valid_utf8("\xF4\x90\x80\x80") == "\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(!graft::is_valid_utf8("\xF8"));
}

TEST_CASE("code points are read forwards and backwards and written again") {
  const std::string text = "aé€👧";
  std::string again;
  for (std::size_t at = 0; at < text.size();)
    graft::append_utf8(again, graft::next_code_point(text, at));
  CHECK(again == text);
  std::size_t at = text.size();
  CHECK(graft::previous_code_point(text, at) == 0x1F467);
  CHECK(graft::previous_code_point(text, at) == 0x20AC);
  CHECK(graft::count_code_points(text) == 4);
}
