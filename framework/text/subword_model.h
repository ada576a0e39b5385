#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace graft {

/// Splits pieces of text into tokens of a vocabulary. Const functions are thread-safe.
class SubwordModel {
 public:
  virtual ~SubwordModel() = default;

  /// Appends the ids of a piece (valid UTF-8, not empty). Throws Error(model) for a character that
  /// the vocabulary does not have when it has no unknown token either.
  virtual void encode(std::string_view piece, std::vector<TokenId>& out) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  explicit SubwordModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

 private:
  Vocabulary vocabulary_;
};

/// The "model" of tokenizer.json. Strings are taken out of `value`. Throws Error(model).
std::unique_ptr<const SubwordModel> make_subword_model(Value& value);

/// One function per kind, called by make_subword_model.
std::unique_ptr<const SubwordModel> make_bpe(Value& value);
std::unique_ptr<const SubwordModel> make_wordpiece(Value& value);
std::unique_ptr<const SubwordModel> make_wordlevel(Value& value);
std::unique_ptr<const SubwordModel> make_unigram(Value& value);

}  // namespace graft
