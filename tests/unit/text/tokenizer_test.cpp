#include "graft/tokenizer.h"

#include <doctest/doctest.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "graft/error.h"
#include "tokenizer_folder.h"

using graft::Error;
using graft::Tokenizer;
using graft::Value;

namespace {

using Ids = std::vector<std::int64_t>;

/// Provenance: tokenizer.json trained with Hugging Face tokenizers 0.23.3, whose answers
/// golden.json holds.
std::filesystem::path family(const std::string& name) {
  return std::filesystem::path(GRAFT_TEST_DATA) / "tokenizer" / name;
}

Ids ids_of(const Value& list) {
  Ids ids;
  for (const Value& id : list.as_array()) ids.push_back(id.as_int());
  return ids;
}

void check_family(const std::string& name) {
  const Tokenizer tokenizer = Tokenizer::open(family(name));
  std::ifstream file(family(name) / "golden.json");
  std::ostringstream text;
  text << file.rdbuf();
  const Value golden = graft::parse_json(text.str());
  REQUIRE(golden.as_array().size() == 100);
  for (const Value& entry : golden.as_array()) {
    const std::string& input = entry.at("text").as_string();
    CAPTURE(input);
    const Ids plain = ids_of(entry.at("ids_plain"));
    CHECK(tokenizer.encode(input) == ids_of(entry.at("ids")));
    CHECK(tokenizer.encode(input, false) == plain);
    CHECK(tokenizer.decode(plain) == entry.at("decoded").as_string());
    CHECK(tokenizer.decode(plain, true) == entry.at("decoded_skip").as_string());
  }
}

}  // namespace

TEST_CASE("GPT-2's tokenizer agrees with Hugging Face on every golden text") {
  check_family("gpt2");
}
TEST_CASE("Llama 3's tokenizer agrees with Hugging Face on every golden text") {
  check_family("llama3");
}
TEST_CASE("Qwen2's tokenizer agrees with Hugging Face on every golden text") {
  check_family("qwen2");
}
TEST_CASE("SmolLM's tokenizer agrees with Hugging Face on every golden text") {
  check_family("smollm");
}
TEST_CASE("BERT's tokenizer agrees with Hugging Face on every golden text") {
  check_family("bert");
}
TEST_CASE("Llama 2's tokenizer agrees with Hugging Face on every golden text") {
  check_family("llama2");
}
TEST_CASE("Gemma's tokenizer agrees with Hugging Face on every golden text") {
  check_family("gemma");
}
TEST_CASE("a Unigram tokenizer agrees with Hugging Face on every golden text") {
  check_family("unigram");
}

TEST_CASE("invalid UTF-8 is read as U+FFFD") {
  const Tokenizer tokenizer = Tokenizer::open(family("gpt2"));
  CHECK(tokenizer.encode("a\xFF\xE2\x82z") == tokenizer.encode("a\uFFFD\uFFFDz"));
  CHECK(tokenizer.encode("\xC0\xAF") == tokenizer.encode("\uFFFD\uFFFD"));
}

TEST_CASE("an id that the vocabulary does not have is refused") {
  const Tokenizer tokenizer = Tokenizer::open(family("gpt2"));
  CHECK(tokenizer.size() == 1500);
  CHECK_THROWS_WITH_AS(tokenizer.decode(Ids{1500}),
                       "the vocabulary has no id 1500: expected 0 to 1499", Error);
  CHECK_THROWS_AS(tokenizer.decode(Ids{-1}), Error);
  CHECK_THROWS_AS(tokenizer.decode(Ids{std::int64_t{1} << 40}), Error);
}

TEST_CASE("special tokens in the text of a user become special tokens") {
  const Tokenizer tokenizer = Tokenizer::open(family("qwen2"));
  CHECK(tokenizer.encode("<|im_end|>") == Ids{*tokenizer.id_of("<|im_end|>")});
}

TEST_CASE("a word of a million letters does not take quadratic time") {
  const std::string word(1'000'000, 'e');
  for (const char* name : {"gpt2", "llama2", "bert", "unigram"}) {
    const Tokenizer tokenizer = Tokenizer::open(family(name));
    CHECK(tokenizer.encode(word).size() > 0);
  }
}

TEST_CASE("tokenizer_config.json adds special tokens and names the end token") {
  TokenizerFolder folder(word_tokenizer(R"("decoder": {"type": "Fuse"},)"));
  CHECK(!folder.open().eos_id());
  CHECK(folder.open().encode("a<s>") == Ids{0});
  folder.write("tokenizer_config.json",
               R"({"eos_token": {"content": "<s>"}, "pad_token": "not there",
                   "added_tokens_decoder": {"5": {"content": "<x>", "special": true}}})");
  const Tokenizer tokenizer = folder.open();
  CHECK(tokenizer.eos_id() == 3);
  CHECK(tokenizer.encode("a<s><x>") == Ids{1, 3, 5});
  CHECK(tokenizer.decode(Ids{1, 3, 5}, true) == "a");
  CHECK(tokenizer.size() == 6);
}

TEST_CASE("a folder without tokenizer.json is refused with what to do") {
  TokenizerFolder folder("{}");
  std::filesystem::remove(folder.path() / "tokenizer.json");
  CHECK_THROWS_WITH_AS(folder.open(), doctest::Contains("has no tokenizer.json"), Error);
  folder.write("tokenizer.model", "");
  CHECK_THROWS_WITH_AS(folder.open(), doctest::Contains("tokenizer.model is not read"), Error);
}
