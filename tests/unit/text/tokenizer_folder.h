#pragma once

#include <string>
#include <string_view>

#include "graft/tokenizer.h"
#include "graft/value.h"
#include "temporary_folder.h"

/// A model folder with tokenizer files, removed at the end of the test.
class TokenizerFolder : public graft::test::TemporaryFolder {
 public:
  explicit TokenizerFolder(std::string_view tokenizer_json) {
    write("tokenizer.json", tokenizer_json);
  }
  graft::Tokenizer open() const { return graft::Tokenizer::open(path()); }
};

/// tokenizer.json with a few whole words: `extra` is text like R"("normalizer": {...},)".
inline std::string word_tokenizer(std::string_view extra = "") {
  return "{" + std::string(extra) +
         R"("model": {"type": "WordLevel", "unk_token": "?",
                      "vocab": {"?": 0, "a": 1, "b": 2, "<s>": 3, "a b": 4}}})";
}
