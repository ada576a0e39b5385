#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/value.h"
#include "text/byte_trie.h"
#include "text/normalizer.h"
#include "text/vocabulary.h"

namespace graft {

/// A token that is cut out of the text before the model sees it.
struct AddedToken {
  std::string content;
  TokenId id = 0;
  bool single_word = false;  ///< not next to a word character
  bool lstrip = false;       ///< takes the spaces before it
  bool rstrip = false;       ///< takes the spaces behind it
  bool normalized = true;    ///< is looked for in the normalized text
  bool special = false;      ///< decode can skip it
  std::string decoded;       ///< what decoders see: the content, normalized where `normalized` says
};

/// The "added_tokens" of tokenizer.json. Const functions are thread-safe.
class AddedTokens {
 public:
  /// A stretch of text between added tokens, or one of them.
  using OnText = std::function<void(std::string_view text)>;
  using OnToken = std::function<void(TokenId id)>;

  /// Adds the entries of the list. Ids must be those of `vocabulary`, and follow it without a gap
  /// for new tokens, as Hugging Face tokenizers would number them. Throws Error(model).
  void add_list(const Value& list, const Vocabulary& vocabulary);
  /// Adds one token; one that is there already stays as it is.
  void add(AddedToken token, const Vocabulary& vocabulary);
  /// Call once after the last token.
  void finish(const Normalizer& normalizer);

  const AddedToken* find(std::int64_t id) const;
  const AddedToken* find(std::string_view content) const;
  /// How many are not in the vocabulary.
  std::size_t new_count() const { return new_count_; }

  /// Cuts text (valid UTF-8) at the tokens that are looked for before it is normalized, or after.
  void split(std::string_view text, bool normalized, const OnText& on_text,
             const OnToken& on_token) const;

 private:
  /// Finds the leftmost longest of its words.
  struct Finder {
    ByteTrie trie;
    std::vector<bool> starts = std::vector<bool>(256);
    bool empty = true;
  };

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, std::size_t> by_content_;
  std::unordered_map<std::int64_t, std::size_t> by_id_;
  std::size_t new_count_ = 0;
  Finder raw_, normalized_;
};

}  // namespace graft
