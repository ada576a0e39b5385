#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "graft/value.h"

namespace graft {

using TokenId = std::int32_t;

/// Tokens and their ids. Ids may have gaps, but not so many that a table by id would be absurd.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  /// {"token": id, ...}. Throws Error(model) for ids that occur twice, are negative, do not fit 31
  /// bits or are spread too thinly.
  static Vocabulary from_object(const Value& vocab);

  /// Adds a token. One text may come again with another id (in Unigram files): the last one counts.
  void add(std::string token, TokenId id);

  std::optional<TokenId> id_of(std::string_view token) const {
    const auto found = ids_.find(token);
    if (found == ids_.end()) return std::nullopt;
    return found->second;
  }
  /// The text of an id, or nullptr.
  const std::string* token(std::int64_t id) const {
    return id >= 0 && static_cast<std::uint64_t>(id) < by_id_.size() ? by_id_[id] : nullptr;
  }
  std::size_t size() const { return count_; }

 private:
  std::deque<std::string> tokens_;
  std::unordered_map<std::string_view, TokenId> ids_;
  std::vector<const std::string*> by_id_;
  std::size_t count_ = 0;
};

}  // namespace graft
