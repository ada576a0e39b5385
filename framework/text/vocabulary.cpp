#include "text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "graft/error.h"

namespace graft {

Vocabulary Vocabulary::from_object(const Value& vocab) {
  Vocabulary out;
  const auto& entries = vocab.as_object();
  const std::int64_t limit =
      std::min<std::int64_t>(std::numeric_limits<TokenId>::max(),
                             (1 << 20) + 8 * static_cast<std::int64_t>(entries.size()));
  out.reserve(entries.size());
  std::int64_t largest = -1;
  for (const auto& [token, value] : entries) {
    const auto wrong = [&](std::string_view expected, std::string_view found) {
      throw Error(ErrorKind::model, "the token " + quote(token) + " has a wrong id")
          .at("vocab")
          .expected(expected)
          .found(found);
    };
    if (!value.is_int()) wrong("an integer", value.type_name());
    const std::int64_t id = value.as_int();
    if (id < 0 || id > limit)
      wrong("0 to " + std::to_string(limit) + " for " + std::to_string(entries.size()) + " tokens",
            std::to_string(id));
    largest = std::max(largest, id);
  }
  out.by_id_.reserve(static_cast<std::size_t>(largest + 1));
  for (const auto& [token, value] : entries) {
    const auto id = static_cast<TokenId>(value.as_int());
    if (const std::string* other = out.token(id))
      throw Error(ErrorKind::model, "the id " + std::to_string(id) + " belongs to " +
                                        quote(*other) + " and " + quote(token))
          .at("vocab");
    out.add(token, id);
  }
  return out;
}

void Vocabulary::add(std::string token, TokenId id) {
  if ((entries_.size() + 1) * 2 > slots_.size()) reserve(entries_.size() * 2);
  const std::uint32_t hash = hash_of(token);
  slots_[probe(token, hash)] = {hash, static_cast<std::int32_t>(entries_.size())};
  const auto index = static_cast<std::size_t>(id);
  if (index >= by_id_.size()) by_id_.resize(index + 1, -1);
  by_id_[index] = static_cast<std::int32_t>(entries_.size());
  entries_.push_back({std::move(token), id});
}

void Vocabulary::reserve(std::size_t count) {
  entries_.reserve(count);
  std::vector<Slot> old(std::bit_ceil(count * 2 + 16));
  old.swap(slots_);
  for (const Slot& slot : old)
    if (slot.entry >= 0)
      slots_[probe(entries_[static_cast<std::size_t>(slot.entry)].text, slot.hash)] = slot;
}

}  // namespace graft
