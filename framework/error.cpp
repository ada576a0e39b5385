#include "graft/error.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>

namespace graft {
namespace {

/// Bytes of one part of a message.
constexpr std::size_t kLongestPart = 100'000;

/// Length of the valid UTF-8 sequence at the start of `s`, or 0.
std::size_t utf8_length(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(s[i]); };
  const std::uint8_t lead = byte(0);
  const std::size_t length = lead < 0x80   ? 1
                             : lead < 0xC2 ? 0
                             : lead < 0xE0 ? 2
                             : lead < 0xF0 ? 3
                             : lead < 0xF5 ? 4
                                           : 0;
  if (length == 0 || length > s.size()) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xC0) != 0x80) return 0;
  if (length == 3 && ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)))
    return 0;
  if (length == 4 && ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)))
    return 0;
  return length;
}

/// Appends `text` with control characters and invalid UTF-8 as \xNN; what is beyond `limit` bytes of
/// `out` is left out.
void append_printable(std::string& out, std::string_view text, std::size_t limit) {
  std::size_t i = 0;
  while (i < text.size() && out.size() < limit) {
    const auto c = static_cast<std::uint8_t>(text[i]);
    // U+0080..U+009F are C1 controls: a terminal may act on them.
    const std::size_t length = c < 0x20 || c == 0x7F ? 0 : utf8_length(text.substr(i));
    if (length == 0 ||
        (length == 2 && c == 0xC2 && static_cast<std::uint8_t>(text[i + 1]) < 0xA0)) {
      char escape[5];
      std::snprintf(escape, sizeof(escape), "\\x%02x", c);
      out += escape;
      ++i;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  if (i < text.size()) out += "...";
}

/// Text from files should have gone through quote(); for what did not, this keeps the promise that a
/// message is safe to print and of bounded length.
std::string printable(std::string_view text) {
  std::string out;
  append_printable(out, text, kLongestPart);
  return out;
}

}  // namespace

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::usage:
      return 1;
    case ErrorKind::model:
      return 2;
    case ErrorKind::plugin:
      return 3;
    case ErrorKind::resource:
      return 4;
    case ErrorKind::quality:
      return 5;
    case ErrorKind::coverage:
      return 6;
    case ErrorKind::interrupted:
      return 130;
    case ErrorKind::internal:
      break;
  }
  return 70;
}

Error::Error(ErrorKind kind, std::string what)
    : std::runtime_error(what), kind_(kind), what_(std::move(what)) {
  compose();
}

Error::~Error() = default;

Error& Error::at(std::string_view place) {
  place_ = place_.empty() ? std::string(place) : std::string(place) + ": " + place_;
  compose();
  return *this;
}

Error& Error::expected(std::string_view text) {
  expected_ = text;
  compose();
  return *this;
}

Error& Error::found(std::string_view text) {
  found_ = text;
  compose();
  return *this;
}

Error& Error::hint(std::string_view text) {
  hint_ = text;
  compose();
  return *this;
}

void Error::compose() {
  text_ = place_.empty() ? printable(what_) : printable(place_) + ": " + printable(what_);
  if (!expected_.empty()) text_ += ": expected " + printable(expected_);
  if (!found_.empty()) text_ += (expected_.empty() ? ": found " : ", found ") + printable(found_);
  if (!hint_.empty()) text_ += "; " + printable(hint_);
}

namespace {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

}  // namespace

std::string quote(std::string_view text, std::size_t limit) {
  std::string out = "'";
  append_printable(out, text, limit);
  return out + "'";
}

std::string nearest_names(std::string_view name, const std::vector<std::string>& candidates) {
  std::vector<std::pair<std::size_t, std::string_view>> near;
  const std::size_t limit = std::max<std::size_t>(2, name.size() / 3);
  if (name.size() > 300) return {};
  for (const auto& candidate : candidates) {
    if (candidate.size() > 300) continue;
    const std::size_t distance = edit_distance(name, candidate);
    if (distance <= limit) near.emplace_back(distance, candidate);
  }
  std::sort(near.begin(), near.end());
  near.erase(std::unique(near.begin(), near.end()), near.end());
  std::string out;
  for (std::size_t i = 0; i < near.size() && i < 3; ++i)
    out += (i ? ", " : "") + quote(near[i].second);
  return out;
}

}  // namespace graft
