#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "graft/tokenizer.h"
#include "graft/value.h"

/// A model folder with tokenizer files, removed at the end of the test.
class TokenizerFolder {
 public:
  explicit TokenizerFolder(std::string_view tokenizer_json) {
    std::string pattern = (std::filesystem::temp_directory_path() / "graft-text-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
    write("tokenizer.json", tokenizer_json);
  }
  ~TokenizerFolder() { std::filesystem::remove_all(path_); }
  TokenizerFolder(const TokenizerFolder&) = delete;
  TokenizerFolder& operator=(const TokenizerFolder&) = delete;

  void write(std::string_view name, std::string_view text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }
  const std::filesystem::path& path() const { return path_; }
  graft::Tokenizer open() const { return graft::Tokenizer::open(path_); }

 private:
  std::filesystem::path path_;
};

/// tokenizer.json with a few whole words: `extra` is text like R"("normalizer": {...},)".
inline std::string word_tokenizer(std::string_view extra = "") {
  return "{" + std::string(extra) +
         R"("model": {"type": "WordLevel", "unk_token": "?",
                      "vocab": {"?": 0, "a": 1, "b": 2, "<s>": 3, "a b": 4}}})";
}
