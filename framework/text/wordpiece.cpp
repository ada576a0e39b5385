#include <algorithm>

#include "text/component.h"
#include "text/subword_model.h"
#include "text/utf8.h"

namespace graft {
namespace {

TokenId unknown_of(const Value& value, const Vocabulary& vocabulary, std::string_view otherwise) {
  const std::string token = value.get_string("unk_token", otherwise);
  const auto id = vocabulary.id_of(token);
  if (!id)
    throw Error(ErrorKind::model, "the vocabulary does not have the unknown token " + quote(token));
  return *id;
}

/// BERT's model: the longest token at the start, then the longest one with the prefix, and so on.
class WordPiece : public SubwordModel {
 public:
  WordPiece(Vocabulary vocabulary, TokenId unknown, std::string prefix, std::size_t longest_word,
            std::size_t longest_token)
      : SubwordModel(std::move(vocabulary)),
        unknown_(unknown),
        prefix_(std::move(prefix)),
        longest_word_(longest_word),
        longest_token_(longest_token) {}

  void encode(std::string_view piece, std::vector<TokenId>& out) const override {
    const std::size_t begin = out.size();
    if (count_code_points(piece) > longest_word_) return out.push_back(unknown_);
    std::string token;
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t prefix = at ? prefix_.size() : 0;
      token = at ? prefix_ : std::string();
      // No token is longer than the longest: a huge limit on words does not make this quadratic.
      token += piece.substr(at, longest_token_);
      while (token.size() > prefix) {
        if (const auto id = vocabulary().id_of(token)) {
          out.push_back(*id);
          break;
        }
        // A token ends where a character does, so other lengths need no look.
        do {
          token.pop_back();
        } while (token.size() > prefix && at + token.size() - prefix < piece.size() &&
                 (static_cast<unsigned char>(piece[at + token.size() - prefix]) & 0xC0) == 0x80);
      }
      if (token.size() <= prefix) {
        out.resize(begin);
        return out.push_back(unknown_);
      }
      at += token.size() - prefix;
    }
  }

 private:
  TokenId unknown_;
  std::string prefix_;
  std::size_t longest_word_, longest_token_;
};

/// Whole pieces only.
class WordLevel : public SubwordModel {
 public:
  WordLevel(Vocabulary vocabulary, TokenId unknown)
      : SubwordModel(std::move(vocabulary)), unknown_(unknown) {}

  void encode(std::string_view piece, std::vector<TokenId>& out) const override {
    out.push_back(vocabulary().id_of(piece).value_or(unknown_));
  }

 private:
  TokenId unknown_;
};

}  // namespace

std::unique_ptr<const SubwordModel> make_wordpiece(Value& value) {
  allow_fields(value,
               {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"});
  Vocabulary vocabulary = Vocabulary::from_object(value.at("vocab"));
  const TokenId unknown = unknown_of(value, vocabulary, "[UNK]");
  const std::int64_t longest = value.get_int("max_input_chars_per_word", 100);
  if (longest < 0)
    refuse_field("max_input_chars_per_word", std::to_string(longest), "a positive number");
  std::size_t longest_token = 0;
  for (const auto& [token, id] : value.at("vocab").as_object())
    longest_token = std::max(longest_token, token.size());
  return std::make_unique<WordPiece>(std::move(vocabulary), unknown,
                                     value.get_string("continuing_subword_prefix", "##"),
                                     static_cast<std::size_t>(longest), longest_token);
}

std::unique_ptr<const SubwordModel> make_wordlevel(Value& value) {
  allow_fields(value, {"unk_token", "vocab"});
  Vocabulary vocabulary = Vocabulary::from_object(value.at("vocab"));
  const TokenId unknown = unknown_of(value, vocabulary, "<unk>");
  return std::make_unique<WordLevel>(std::move(vocabulary), unknown);
}

}  // namespace graft
