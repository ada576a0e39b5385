#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "graft/value.h"

namespace graft {

/// Called for every match of a pattern in a text, in order, with its range in bytes.
using OnMatch = std::function<void(std::size_t begin, std::size_t end)>;
using Pattern = std::function<void(std::string_view text, const OnMatch& on_match)>;

/// {"String": text} or {"Regex": expression}. An empty string matches nowhere.
Pattern make_pattern(const Value& value);
/// Every character of a class is a match of its own.
Pattern character_pattern(std::function<bool(char32_t)> of_class);

/// `text` with every match replaced by `content` as it stands.
std::string replace_matches(std::string_view text, const Pattern& pattern,
                            std::string_view content);

}  // namespace graft
