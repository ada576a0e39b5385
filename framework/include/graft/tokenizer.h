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
/// "truncation" and "padding" of the file are left out, as Transformers leaves them out unless a
/// caller asks for them. A value: copies share the tables. All const functions are thread-safe.
class GRAFT_API Tokenizer {
 public:
  /// Reads tokenizer.json of a model folder; also, when there are such files, the special tokens of
  /// tokenizer_config.json and the chat template of chat_template.jinja or tokenizer_config.json.
  /// Throws Error(model) naming file and field for anything malformed and for a kind of tokenizer
  /// that this build does not have.
  static Tokenizer open(const std::filesystem::path& folder);

  /// Ids of UTF-8 text; invalid bytes count as U+FFFD. Text that spells a special token becomes
  /// that token, also where a user typed it. With `add_special_tokens` the post-processor of the
  /// file adds its own ([CLS], <s>, ...). Throws Error(model) when a regular expression of the file
  /// needs too much backtracking on this text.
  std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens = true) const;

  /// Text of ids, always valid UTF-8. Throws Error(usage) for an id that the vocabulary does not
  /// have.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special_tokens = false) const;

  std::size_t size() const;  ///< entries of the vocabulary with the added tokens
  std::optional<std::int64_t> id_of(std::string_view token) const;
  bool is_special(std::int64_t id) const;  ///< decode leaves it out when it skips special tokens
  std::optional<std::int64_t> eos_id() const;  ///< of tokenizer_config.json, when it names one

  /// The prompt that the model was trained to answer, up to where the assistant speaks; encode it
  /// without special tokens, it has its own. ChatML templates only, recognised by their shape; the
  /// default system text is the template's own. Content goes in as it is: "<|im_end|>" in it ends
  /// the turn, as with Transformers. Throws Error(model) when the folder has no chat template or
  /// one of another shape, Error(usage) for no messages or an unknown role.
  std::string chat_prompt(std::span<const ChatMessage> messages) const;
  /// The same of a conversation that is over: all its turns and nothing behind them.
  std::string chat_text(std::span<const ChatMessage> messages) const;

 private:
  Tokenizer() = default;
  std::string in_chat_format(std::span<const ChatMessage> messages, bool asks) const;

  struct State;
  std::shared_ptr<const State> state_;
};

/// Text of ids as they come, in pieces that never hold half a character. All pieces together are
/// the text of all ids, unless byte tokens that were printed as characters turn out to belong to a
/// broken run. For one thread at a time.
class GRAFT_API TextStream {
 public:
  explicit TextStream(Tokenizer tokenizer, bool skip_special_tokens = true);

  /// The text that is complete with this id, often empty. Throws as Tokenizer::decode.
  std::string push(std::int64_t id);
  /// What is left at the end: a character that was cut off, as U+FFFD.
  std::string finish();

 private:
  std::string take();

  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::vector<std::int64_t> ids_;  ///< those that were printed last, then those that wait
  std::size_t printed_ids_ = 0;
  std::string printed_;  ///< the text of the printed ones, as it stands at the start of ids_
};

}  // namespace graft
