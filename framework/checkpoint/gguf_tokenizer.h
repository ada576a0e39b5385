#pragma once

#include <string_view>

#include "checkpoint/gguf_header.h"
#include "graft/value.h"

namespace graft {

/// The tokenizer of a GGUF file as the files of a Hugging Face folder.
struct GgufTokenizer {
  Value tokenizer;         ///< tokenizer.json
  Value tokenizer_config;  ///< tokenizer_config.json, with the chat template
};

/// Byte-level BPE ("gpt2") whose way to split text graft knows by name; others are refused by name.
/// `splitting` takes the place of tokenizer.ggml.pre where a file does not say it; empty: refused.
/// Splitting and defaults are those of the model family's own tokenizer.json.
GgufTokenizer describe_gguf_tokenizer(const GgufHeader& header, std::string_view splitting = {});

}  // namespace graft
