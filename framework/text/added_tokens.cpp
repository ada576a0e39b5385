#include "text/added_tokens.h"

#include <algorithm>
#include <limits>

#include "text/char_class.h"
#include "text/component.h"
#include "text/utf8.h"

namespace graft {
namespace {

/// Bounds what looking for tokens costs at each byte of a text.
constexpr std::size_t kContentLimit = 1024;

bool ends_with_word(std::string_view text) {
  std::size_t at = text.size();
  return at > 0 && is_word(previous_code_point(text, at));
}

bool starts_with_word(std::string_view text) {
  std::size_t at = 0;
  return !text.empty() && is_word(next_code_point(text, at));
}

/// Where the spaces that end at `end` begin, but not before `stop`.
std::size_t spaces_before(std::string_view text, std::size_t end, std::size_t stop) {
  while (end > stop) {
    std::size_t previous = end;
    if (!is_space(previous_code_point(text, previous))) break;
    end = previous;
  }
  return end;
}

std::size_t spaces_behind(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    std::size_t next = begin;
    if (!is_space(next_code_point(text, next))) break;
    begin = next;
  }
  return begin;
}

}  // namespace

void AddedTokens::add_list(const Value& list, const Vocabulary& vocabulary) {
  const auto& entries = list.as_array();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    try {
      const Value& entry = entries[i];
      allow_fields(entry,
                   {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
      const std::int64_t id = entry.at("id").as_int();
      if (id < 0 || id > std::numeric_limits<TokenId>::max())
        refuse_field("id", std::to_string(id), "0 to 2147483647");
      AddedToken token;
      token.content = entry.at("content").as_string();
      token.id = static_cast<TokenId>(id);
      token.special = entry.get_bool("special", false);
      token.single_word = entry.get_bool("single_word", false);
      token.lstrip = entry.get_bool("lstrip", false);
      token.rstrip = entry.get_bool("rstrip", false);
      token.normalized = entry.get_bool("normalized", !token.special);
      add(std::move(token), vocabulary);
    } catch (Error& error) {
      error.at("added_tokens[" + std::to_string(i) + "]");
      throw;
    }
  }
}

void AddedTokens::add(AddedToken token, const Vocabulary& vocabulary) {
  if (token.content.empty() || token.content.size() > kContentLimit)
    throw Error(ErrorKind::model, "the added token " + quote(token.content) + " has a wrong length")
        .expected("1 to " + std::to_string(kContentLimit) + " bytes")
        .found(std::to_string(token.content.size()));
  const auto known = vocabulary.id_of(token.content);
  const AddedToken* earlier = find(token.content);
  const auto next = static_cast<TokenId>(vocabulary.size() + new_count_);
  const TokenId right = earlier ? earlier->id : known.value_or(next);
  if (token.id != right)
    throw Error(ErrorKind::model, "the added token " + quote(token.content) + " has a wrong id")
        .expected(std::to_string(right) + (known ? ", its id in the vocabulary" : ", the next one"))
        .found(std::to_string(token.id));
  if (earlier) return;
  if (!known) {
    if (const std::string* other = vocabulary.token(token.id))
      throw Error(ErrorKind::model, "the id " + std::to_string(token.id) + " belongs to " +
                                        quote(*other) + " and " + quote(token.content));
    ++new_count_;
  }
  by_content_.emplace(token.content, tokens_.size());
  by_id_.emplace(token.id, tokens_.size());
  tokens_.push_back(std::move(token));
}

void AddedTokens::finish(const Normalizer& normalizer) {
  raw_ = {};
  normalized_ = {};
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    Finder& finder = tokens_[i].normalized ? normalized_ : raw_;
    std::string& word = tokens_[i].decoded;
    word = tokens_[i].content;
    if (tokens_[i].normalized) normalizer.apply(word);
    if (word.empty())
      throw Error(ErrorKind::model, "the added token " + quote(tokens_[i].content) +
                                        " is nothing once it is normalized");
    finder.trie.add(word, static_cast<std::int32_t>(i), false);
    finder.starts[static_cast<unsigned char>(word[0])] = true;
    finder.empty = false;
  }
}

const AddedToken* AddedTokens::find(std::int64_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

void AddedTokens::split(std::string_view text, bool normalized, const OnText& on_text,
                        const OnToken& on_token) const {
  const Finder& finder = normalized ? normalized_ : raw_;
  std::size_t done = 0;                          // everything before it has been reported
  std::size_t spaces_begin = 0, spaces_end = 0;  // spaces that were looked at last
  for (std::size_t at = 0; at < text.size() && !finder.empty;) {
    std::size_t size = 0;
    std::int32_t number = -1;
    if (finder.starts[static_cast<unsigned char>(text[at])])
      finder.trie.prefixes(text.substr(at), [&](std::size_t length, std::int32_t found) {
        size = length;
        number = found;
      });
    if (number < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<std::size_t>(number)];
    std::size_t begin = at, end = at + size;
    at = end;
    if (token.single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))))
      continue;
    if (token.lstrip) begin = begin > done ? spaces_before(text, begin, done) : done;
    if (token.rstrip) {
      if (end < spaces_begin || end > spaces_end) {
        spaces_begin = end;
        spaces_end = spaces_behind(text, end);
      }
      end = spaces_end;
    }
    if (done < begin) on_text(text.substr(done, begin - done));
    // Made of spaces that an earlier token took, it is nothing.
    if (begin < end) on_token(token.id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace graft
