#include "graft/error.h"

#include "graft/value.h"
#include "registry/patch_file.h"

#include "thrown_by.h"

using namespace graft;

TEST_CASE("a message is safe to print whatever text got into a part of it") {
  const std::string hostile = "a\x1b[2J\n\x7f\xff\xc2\x9b" "b";
  const std::string safe = R"(a\x1b[2J\x0a\x7f\xff\xc2\x9bb)";
  Error error(ErrorKind::model, hostile);
  error.at(hostile).expected(hostile).found(hostile).hint(hostile);
  CHECK(error.what() ==
        safe + ": " + safe + ": expected " + safe + ", found " + safe + "; " + safe);
}

TEST_CASE("a message keeps letters of all languages") {
  CHECK(std::string(Error(ErrorKind::model, "caf\xc3\xa9 \xe4\xb8\xad").what()) ==
        "caf\xc3\xa9 \xe4\xb8\xad");
}

TEST_CASE("a message stays short however long the text of a file is") {
  const std::string huge(8 << 20, 'x');
  CHECK(std::string(Error(ErrorKind::model, "wrong").found(huge).what()).size() < 200'000);
}

TEST_CASE("messages that show a value or the words of a parser are safe to print") {
  const Value value = parse_json("{\"names\": \"\xc2\x80\x7f\"}");
  CHECK(test::contains(test::message_of([&] { value.get_strings("names"); }),
                       R"(found "\xc2\x80\x7f")"));
  CHECK(test::contains(
      test::message_of([] { parse_patch_file("graft: \"\\\x0c\"", "r.yaml", Tier::user); }),
      R"(unknown escape character: \x0c)"));
}
