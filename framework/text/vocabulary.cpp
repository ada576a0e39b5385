#include "text/vocabulary.h"

#include <algorithm>
#include <limits>

#include "graft/error.h"

namespace graft {

Vocabulary Vocabulary::from_object(const Value& vocab) {
  Vocabulary out;
  const auto& entries = vocab.as_object();
  const std::int64_t limit =
      std::min<std::int64_t>(std::numeric_limits<TokenId>::max(),
                             (1 << 20) + 8 * static_cast<std::int64_t>(entries.size()));
  out.ids_.reserve(entries.size());
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
  const std::string& kept = tokens_.emplace_back(std::move(token));
  const auto [entry, inserted] = ids_.try_emplace(kept, id);
  if (!inserted) entry->second = id;
  const auto index = static_cast<std::size_t>(id);
  if (index >= by_id_.size()) by_id_.resize(index + 1);
  by_id_[index] = &kept;
  ++count_;
}

}  // namespace graft
