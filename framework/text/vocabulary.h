#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/value.h"

namespace graft {

using TokenId = std::int32_t;

/// Tokens and their ids. Ids may have gaps, but not so many that a table by id would be absurd.
class Vocabulary {
 public:
  /// {"token": id, ...}. Throws Error(model) for ids that occur twice, are negative, do not fit 31
  /// bits or are spread too thinly.
  static Vocabulary from_object(const Value& vocab);

  /// Adds a token. One text may come again with another id (in Unigram files): the last one counts.
  void add(std::string token, TokenId id);

  std::optional<TokenId> id_of(std::string_view token) const {
    const Slot& slot = slots_[probe(token, hash_of(token))];
    if (slot.entry < 0) return std::nullopt;
    return entries_[static_cast<std::size_t>(slot.entry)].id;
  }
  /// The text of an id, or nullptr.
  const std::string* token(std::int64_t id) const {
    if (id < 0 || static_cast<std::uint64_t>(id) >= by_id_.size()) return nullptr;
    const std::int32_t entry = by_id_[static_cast<std::size_t>(id)];
    return entry < 0 ? nullptr : &entries_[static_cast<std::size_t>(entry)].text;
  }
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::string text;
    TokenId id;
  };
  struct Slot {
    std::uint32_t hash = 0;
    std::int32_t entry = -1;
  };

  static std::uint32_t hash_of(std::string_view token) {
    return static_cast<std::uint32_t>(std::hash<std::string_view>()(token));
  }
  /// The slot of a token, or the empty one where it belongs.
  std::size_t probe(std::string_view token, std::uint32_t hash) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = hash & mask;
    for (; slots_[i].entry >= 0; i = (i + 1) & mask)
      if (slots_[i].hash == hash &&
          entries_[static_cast<std::size_t>(slots_[i].entry)].text == token)
        break;
    return i;
  }
  void reserve(std::size_t count);

  std::vector<Entry> entries_;
  std::vector<Slot> slots_ = std::vector<Slot>(16);  ///< entries by hash, open addressing
  std::vector<std::int32_t> by_id_;                  ///< entries by id, -1 in gaps
};

}  // namespace graft
