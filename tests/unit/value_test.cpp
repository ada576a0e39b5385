#include "graft/value.h"

#include <doctest/doctest.h>

#include "graft/error.h"

using graft::Error;
using graft::parse_json;
using graft::to_json;
using graft::Value;

TEST_CASE("JSON objects keep the order of their keys") {
  const Value value = parse_json(R"({"z": 1, "a": {"-:x": {}, "+:y": {"bits": 8}}})");
  CHECK(to_json(value) == R"({"z": 1, "a": {"-:x": {}, "+:y": {"bits": 8}}})");
}

TEST_CASE("integers and floats are kept apart and floats are written as Python writes them") {
  CHECK(to_json(parse_json("[4, 4.0, 1e-06, 0.0001, 100000.0, 1e16, -0.0, 0.13133668899536133]")) ==
        "[4, 4.0, 1e-06, 0.0001, 100000.0, 1e+16, -0.0, 0.13133668899536133]");
}

TEST_CASE("a null member reads as its default") {
  const Value value = parse_json(R"({"group_size": null})");
  CHECK(value.get_int("group_size", 128) == 128);
  CHECK(value.find("group_size") == nullptr);
}

TEST_CASE("a member of the wrong type is named with both types") {
  const Value value = parse_json(R"({"bits": "4"})");
  CHECK_THROWS_WITH_AS(
      value.get_int("bits", 4),
      "field 'bits': wrong type: expected integer, found string; correct it there, "
      "or get the file from its source again",
      Error);
}

TEST_CASE("bad JSON is refused with line and column") {
  CHECK_THROWS_WITH_AS(parse_json("{\n  \"a\": 1,\n}"), doctest::Contains("line 3, column 1"),
                       Error);
  CHECK_THROWS_WITH_AS(parse_json("{\"a\": 1, \"a\": 2}"),
                       doctest::Contains("the key 'a' occurs twice"), Error);
  CHECK_THROWS_WITH_AS(parse_json("\xEF\xBB\xBF{}"), doctest::Contains("byte order mark"), Error);
  CHECK_THROWS_WITH_AS(parse_json(std::string(100000, '[')),
                       doctest::Contains("nested deeper than 64"), Error);
  CHECK_THROWS_AS(parse_json("{\"a\": NaN}"), Error);
  CHECK_THROWS_AS(parse_json("{\"a\": 1e400}"), Error);
  CHECK_THROWS_AS(parse_json("{\"a\xFF\": 1}"), Error);
  CHECK_THROWS_AS(parse_json(""), Error);
  CHECK_THROWS_AS(parse_json("{} x"), Error);
}

TEST_CASE("text from files is quoted so that a terminal does not act on it") {
  CHECK(graft::quote("a\x1b[31m\n\xff") == "'a\\x1b[31m\\x0a\\xff'");
  CHECK(graft::quote("caf\xc3\xa9") == "'caf\xc3\xa9'");
  CHECK(graft::quote(std::string(1000, 'a')).size() < 220);
}

TEST_CASE("a misspelt name finds its neighbours") {
  CHECK(graft::nearest_names("gtpq", {"gptq", "awq", "bitsandbytes"}) == "'gptq'");
  CHECK(graft::nearest_names("zzzzzz", {"gptq", "awq"}) == "");
}
