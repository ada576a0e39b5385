#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "graft/error.h"
#include "tokenizer_folder.h"

using graft::Error;

namespace {

/// What opening a folder with this tokenizer.json says, from the file name on.
std::string refusal(std::string_view json) {
  TokenizerFolder folder(json);
  try {
    folder.open();
  } catch (const Error& error) {
    CHECK(error.kind() == graft::ErrorKind::model);
    const std::string text = error.what();
    const std::size_t file = text.find("tokenizer.json: ");
    return file == std::string::npos ? text : text.substr(file + 16);
  }
  return "accepted";
}

std::string bpe(std::string_view fields) {
  return R"({"model": {"type": "BPE", )" + std::string(fields) + "}}";
}

}  // namespace

TEST_CASE("a malformed tokenizer.json is refused with its field") {
  const std::pair<std::string, const char*> cases[] = {
      {"{", "not valid JSON"},
      {"[]", "wrong type: expected object, found list"},
      {std::string(100000, '['), "nested deeper than 64"},
      {R"({"model": {"type": "BPE", "vocab": {"a)"
       "\xFF"
       R"(": 0}, "merges": []}})",
       "not valid JSON"},
      {"{}", "the field 'model' is missing"},
      {R"({"model": null})", "the field 'model' is missing"},
      {R"({"model": 3})", "model: wrong type: expected object, found integer"},
      {R"({"model": {}})", "model: the field 'type' is missing"},
      {R"({"model": {"type": 1}})", "wrong type: expected string, found integer"},
      {R"({"model": {"type": "Neural"}})", "model: this build has no tokenizer model 'Neural'"},
      {R"({"version": "2.0", "model": {}})", "'version' has an unknown value: expected 1.0"},
      {R"({"modle": {}})", "the field 'modle' is unknown"},
      {bpe(R"("vocab": {"a": 0})"), "model: the field 'merges' is missing"},
      {bpe(R"("merges": [])"), "model: the field 'vocab' is missing"},
      {bpe(R"("vocab": [], "merges": [])"), "model: wrong type: expected object, found list"},
      {bpe(R"("vocab": {"a": 0}, "merges": {}})"), "not valid JSON"},
      {bpe(R"("vocab": {"a": 0}, "merges": {})"), "wrong type: expected list, found object"},
      {bpe(R"("vocab": {"a": 0}, "merges": [], "fuse_unk": 1)"), "field 'fuse_unk': wrong type"},
      {bpe(R"("vocab": {"a": 0}, "merges": [], "new": 1)"), "the field 'new' is unknown"},
      {bpe(R"("vocab": {"a": 0}, "merges": [], "dropout": 0.1)"), "splits at random"},
      {bpe(R"("vocab": {"a": 0}, "merges": [], "unk_token": "<unk>")"),
       "does not have the unknown token '<unk>'"},
      {bpe(R"("vocab": {"a": 0, "b": 0}, "merges": [])"), "vocab: the id 0 belongs to 'a' and 'b'"},
      {bpe(R"("vocab": {"a": 0, "a": 1}, "merges": [])"), "the key 'a' occurs twice"},
      {bpe(R"("vocab": {"a": -1}, "merges": [])"), "the token 'a' has a wrong id"},
      {bpe(R"("vocab": {"a": 2147483648}, "merges": [])"), "the token 'a' has a wrong id"},
      {bpe(R"("vocab": {"a": 2000000000}, "merges": [])"), "found 2000000000"},
      {bpe(R"("vocab": {"a": 1e300}, "merges": [])"), "expected an integer, found number"},
      {bpe(R"("vocab": {"a": "0"}, "merges": [])"), "expected an integer, found string"},
      {bpe(R"("vocab": {"a": 0, "b": 1}, "merges": ["a b"])"),
       "model: merges[0]: the vocabulary does not have the token 'ab'"},
      {bpe(R"("vocab": {"a": 0}, "merges": ["a c"])"), "does not have the token 'c'"},
      {bpe(R"("vocab": {"a": 0}, "merges": ["a"])"), "merges[0]: wrong merge: expected two tokens"},
      {bpe(R"("vocab": {"a": 0}, "merges": ["a a a"])"), "expected two tokens"},
      {bpe(R"("vocab": {"a": 0}, "merges": [["a"]])"), "expected two tokens"},
      {bpe(R"("vocab": {"a": 0}, "merges": [["a", 1]])"), "merges[0]: wrong type"},
      {bpe(R"("vocab": {"a": 0}, "merges": [7])"), "merges[0]: wrong type"},
      {R"({"model": {"type": "WordPiece", "vocab": {"a": 0}}})", "the unknown token '[UNK]'"},
      {R"({"model": {"type": "WordPiece", "vocab": {"[UNK]": 0}, "max_input_chars_per_word": -1}})",
       "max_input_chars_per_word"},
      {R"({"model": {"type": "WordLevel", "vocab": {"a": 0}}})", "the unknown token '<unk>'"},
      {R"({"model": {"type": "Unigram", "vocab": {"a": 0}}})", "expected list, found object"},
      {R"({"model": {"type": "Unigram", "vocab": [["a"]]}})", "vocab[0]: wrong entry"},
      {R"({"model": {"type": "Unigram", "vocab": [["a", "b"]]}})", "vocab[0]: wrong entry"},
      {R"({"model": {"type": "Unigram", "unk_id": 1, "vocab": [["a", 0]]}})", "an id below 1"},
      {R"({"model": {"type": "Unigram", "unk_id": -1, "vocab": [["a", 0]]}})", "an id below 1"},
  };
  for (const auto& [json, expected] : cases) {
    CAPTURE(json.substr(0, 200));
    const std::string said = refusal(json);
    CHECK_MESSAGE(said.find(expected) != std::string::npos, said);
  }
}

TEST_CASE("a malformed component of tokenizer.json is refused with its type") {
  const std::pair<const char*, const char*> cases[] = {
      {R"("normalizer": {"type": "Precompiled", "precompiled_charsmap": ""})",
       "normalizer 'Precompiled'"},
      {R"("normalizer": {"type": "New"})", "normalizer 'New': this build has no normalizer 'New'"},
      {R"("normalizer": [])", "wrong type"},
      {R"("normalizer": {"type": "NFC", "mode": 1})",
       "normalizer 'NFC': the field 'mode' is unknown"},
      {R"("normalizer": {"type": "Sequence"})", "the field 'normalizers' is missing"},
      {R"("normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""})",
       "the regular expression '(' does not compile"},
      {R"("normalizer": {"type": "Replace", "pattern": {"Glob": "*"}, "content": ""})",
       "this build has no pattern 'Glob'"},
      {R"("normalizer": {"type": "Replace", "pattern": "a", "content": ""})", "wrong type"},
      {R"("pre_tokenizer": {"type": "Words"})", "this build has no pre-tokenizer 'Words'"},
      {R"("pre_tokenizer": {"type": "Split", "pattern": {"String": "a"}, "behavior": "Cut"})",
       "'behavior' has an unknown value: expected Removed"},
      {R"("pre_tokenizer": {"type": "Metaspace", "replacement": "__"})", "expected one character"},
      {R"("pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})",
       "expected always, first or never"},
      {R"("pre_tokenizer": {"type": "FixedLength", "length": 0})", "expected a positive number"},
      {R"("pre_tokenizer": {"type": "Digits", "individual_digits": "yes"})",
       "field 'individual_digits': wrong type"},
      {R"("decoder": {"type": "Magic"})", "this build has no decoder 'Magic'"},
      {R"("decoder": {"type": "Strip", "content": " ", "start": -1})", "expected 0 or more"},
      {R"("post_processor": {"type": "Magic"})", "this build has no post-processor 'Magic'"},
      {R"("post_processor": {"type": "BertProcessing", "sep": ["<s>", 9], "cls": ["<s>", 3]})",
       "post_processor: the vocabulary has no id 9"},
      {R"("post_processor": {"type": "BertProcessing", "sep": ["<s>"], "cls": ["<s>", 3]})",
       "wrong field 'sep'"},
      {R"("post_processor": {"type": "TemplateProcessing", "single": [], "pair": [],
          "special_tokens": {}})",
       "expected sequence A once"},
      {R"("post_processor": {"type": "TemplateProcessing", "special_tokens": {},
          "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}]})",
       "expected sequence A once"},
      {R"("post_processor": {"type": "TemplateProcessing", "special_tokens": {},
          "single": [{"SpecialToken": {"id": "<s>"}}]})",
       "'special_tokens' does not have '<s>'"},
      {R"("added_tokens": {})", "expected list, found object"},
      {R"("added_tokens": [{"content": "<x>"}])", "added_tokens[0]: the field 'id' is missing"},
      {R"("added_tokens": [{"id": 5}])", "the field 'content' is missing"},
      {R"("added_tokens": [{"id": 5, "content": ""}])", "has a wrong length"},
      {R"("added_tokens": [{"id": 7, "content": "<x>"}])",
       "added_tokens[0]: the added token '<x>' has a wrong id: expected 5, the next one, found 7"},
      {R"("added_tokens": [{"id": 1, "content": "<s>"}])", "expected 3, its id in the vocabulary"},
      {R"("added_tokens": [{"id": 99999999999, "content": "<x>"}])", "'id' has an unknown value"},
      {R"("added_tokens": [{"id": 5, "content": "<x>", "lstrip": 1}])", "field 'lstrip'"},
      {R"("normalizer": {"type": "Strip"}, "added_tokens": [{"id": 5, "content": "  "}])",
       "is nothing once it is normalized"},
  };
  for (const auto& [fields, expected] : cases) {
    CAPTURE(fields);
    const std::string said = refusal(word_tokenizer(std::string(fields) + ","));
    CHECK_MESSAGE(said.find(expected) != std::string::npos, said);
  }
}

TEST_CASE("sequences may be nested as deep as JSON may") {
  std::string inner = R"({"type": "Lowercase"})";
  for (int i = 0; i < 30; ++i) inner = R"({"type": "Sequence", "normalizers": [)" + inner + "]}";
  TokenizerFolder folder(word_tokenizer("\"normalizer\": " + inner + ","));
  CHECK(folder.open().encode("A") == std::vector<std::int64_t>{1});
  std::string deeper = inner;
  for (int i = 0; i < 40; ++i) deeper = R"({"type": "Sequence", "normalizers": [)" + deeper + "]}";
  CHECK(refusal(word_tokenizer("\"normalizer\": " + deeper + ",")).find("nested deeper") !=
        std::string::npos);
}

TEST_CASE("files of early tokenizers name no model type") {
  TokenizerFolder folder(R"({"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
  CHECK(folder.open().encode("abb") == std::vector<std::int64_t>{2, 1});
}

TEST_CASE("a wrong tokenizer_config.json is refused with its name") {
  TokenizerFolder folder(word_tokenizer());
  folder.write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "<x>"}}})");
  CHECK_THROWS_WITH_AS(folder.open(),
                       doctest::Contains("tokenizer_config.json: "
                                         "added_tokens_decoder: the key 'x' is no id"),
                       Error);
  folder.write("tokenizer_config.json", R"({"added_tokens_decoder": {"9": {"content": "<x>"}}})");
  CHECK_THROWS_WITH_AS(folder.open(), doctest::Contains("'<x>' has a wrong id"), Error);
}
