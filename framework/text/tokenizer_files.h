#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "text/added_tokens.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/subword_model.h"

namespace graft {

/// What the files of a model folder say about its tokenizer.
struct TokenizerFiles {
  std::filesystem::path folder;
  AddedTokens added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<const SubwordModel> model;
  PostProcessor post_processor;
  Decoder decoder;
  std::string eos_token;      ///< empty when none is named
  std::string chat_template;  ///< empty when there is none
  std::filesystem::path chat_template_file;
};

/// Throws Error(model) naming file and field.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& folder);

}  // namespace graft
