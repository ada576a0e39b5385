#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "graft/error.h"
#include "graft/tokenizer.h"
#include "text/utf8.h"

using graft::TextStream;
using graft::Tokenizer;

namespace {

Tokenizer family(const std::string& name) {
  return Tokenizer::open(std::filesystem::path(GRAFT_TEST_DATA) / "tokenizer" / name);
}

}  // namespace

TEST_CASE("streamed pieces are whole characters and add up to the text") {
  const std::string text =
      "Hello 👩‍👩‍👧, 中文 café e\u0301 नमस्ते!\n\n  x";
  for (const char* name :
       {"gpt2", "llama3", "qwen2", "smollm", "bert", "llama2", "gemma", "unigram"}) {
    CAPTURE(name);
    const Tokenizer tokenizer = family(name);
    const auto ids = tokenizer.encode(text);
    TextStream stream(tokenizer);
    std::string all;
    for (const auto id : ids) {
      const std::string piece = stream.push(id);
      CHECK(graft::is_valid_utf8(piece));
      CHECK(piece.find("\uFFFD") == std::string::npos);
      all += piece;
    }
    all += stream.finish();
    CHECK(all == tokenizer.decode(ids, true));
  }
}

TEST_CASE("a character that is cut off comes at the end as U+FFFD") {
  const Tokenizer tokenizer = family("gpt2");
  auto ids = tokenizer.encode("a👧");
  ids.pop_back();
  TextStream stream(tokenizer);
  std::string all;
  for (const auto id : ids) all += stream.push(id);
  CHECK(all == "a");
  CHECK(stream.finish() == "\uFFFD");
  CHECK(stream.finish().empty());
}

TEST_CASE("bytes that never become a character do not wait for ever") {
  const Tokenizer tokenizer = family("gpt2");
  const auto half = tokenizer.encode("👧").front();
  TextStream stream(tokenizer);
  std::string all;
  for (int i = 0; i < 1000; ++i) all += stream.push(half);
  CHECK(all.size() > 2000);
}

TEST_CASE("special tokens are skipped or printed") {
  const Tokenizer tokenizer = family("llama2");
  const auto end = *tokenizer.id_of("</s>");
  CHECK(tokenizer.is_special(end));
  CHECK(!tokenizer.is_special(end + 1));
  TextStream skipping(tokenizer), printing(tokenizer, false);
  std::string skipped, printed;
  auto ids = tokenizer.encode("a b", false);
  ids.insert(ids.begin() + 1, end);
  for (const auto id : ids) skipped += skipping.push(id);
  for (const auto id : ids) printed += printing.push(id);
  CHECK(skipped + skipping.finish() == tokenizer.decode(ids, true));
  CHECK(printed + printing.finish() == tokenizer.decode(ids));
}

TEST_CASE("a wrong id leaves the stream as it was") {
  const Tokenizer tokenizer = family("gpt2");
  TextStream stream(tokenizer);
  CHECK_THROWS_AS(stream.push(999999), graft::Error);
  std::string all;
  for (const auto id : tokenizer.encode("ab")) all += stream.push(id);
  CHECK(all + stream.finish() == "ab");
}
