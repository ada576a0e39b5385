#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"

namespace graft {

/// One turn of a conversation.
struct ChatMessage {
  std::string role;     ///< "system", "user" or "assistant"
  std::string content;  ///< UTF-8
};

/// Text to token ids and back, as Hugging Face tokenizers does it for the same tokenizer.json.
/// A value: copies share the tables. All const functions are thread-safe.
class GRAFT_API Tokenizer {
 public:
  /// Reads tokenizer.json of a model folder, and tokenizer_config.json when there is one (chat
  /// template, names of special tokens). Throws Error(model) naming file and field for anything
  /// malformed and for a kind of tokenizer that this build does not have.
  static Tokenizer open(const std::filesystem::path& folder);

  /// Ids of UTF-8 text; invalid bytes count as U+FFFD. With `add_special_tokens` the post-processor
  /// of the file adds its own ([CLS], <s>, ...).
  std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens = true) const;

  /// Text of ids. Throws Error(usage) for an id that the vocabulary does not have.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special_tokens = false) const;

  std::size_t size() const;  ///< entries of the vocabulary with the added tokens
  std::optional<std::int64_t> id_of(std::string_view token) const;
  std::optional<std::int64_t> eos_id() const;  ///< of tokenizer_config.json, when it names one

  /// The prompt that the model was trained to answer, up to where the assistant speaks. ChatML
  /// templates only, recognised by their shape; the default system text is the template's own.
  /// Throws Error(model) when the folder has no chat template or one of another shape.
  std::string chat_prompt(std::span<const ChatMessage> messages) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace graft
