#include "text/utf8.h"

#include <cstdint>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Part {
  std::size_t size;
  bool valid;
};

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

/// The character at the start of `s`, or the longest start of one that is cut off or broken.
Part first_part(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(s[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const std::size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < size; ++i) {
    std::uint8_t low = 0x80, high = 0xBF;
    if (i == 1 && lead == 0xE0) low = 0xA0;
    if (i == 1 && lead == 0xED) high = 0x9F;
    if (i == 1 && lead == 0xF0) low = 0x90;
    if (i == 1 && lead == 0xF4) high = 0x8F;
    if (i >= s.size() || byte(i) < low || byte(i) > high) return {i, false};
  }
  return {size, true};
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    if (static_cast<std::uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Part part = first_part(text.substr(i));
    if (!part.valid) break;
    i += part.size;
  }
  return i;
}

bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

std::string to_valid_utf8(std::string_view text) {
  std::string out;
  while (true) {
    const std::size_t valid = valid_utf8_prefix(text);
    out += text.substr(0, valid);
    if (valid == text.size()) return out;
    out += kReplacement;
    text.remove_prefix(valid + first_part(text.substr(valid)).size);
  }
}

char32_t next_code_point(std::string_view text, std::size_t& position) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<std::uint8_t>(text[position + i]));
  };
  const std::size_t size = utf8_size(text[position]);
  const char32_t c = size == 1   ? byte(0)
                     : size == 2 ? (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F)
                     : size == 3 ? (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F)
                                 : (byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 |
                                       (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  position += size;
  return c;
}

char32_t previous_code_point(std::string_view text, std::size_t& position) {
  do {
    --position;
  } while ((static_cast<std::uint8_t>(text[position]) & 0xC0) == 0x80);
  std::size_t start = position;
  return next_code_point(text, start);
}

void require_text(std::string_view text) {
  const std::size_t zeros = count(text, std::string_view("\0", 1));
  const std::size_t broken = count(to_valid_utf8(text), kReplacement) - count(text, kReplacement);
  if (zeros == 0 && broken <= text.size() / 100) return;
  throw Error(ErrorKind::usage, "this is not text")
      .expected("UTF-8")
      .found(std::to_string(broken) + " places that are not and " + std::to_string(zeros) +
             " zero bytes in " + std::to_string(text.size()) + " bytes");
}

std::size_t count_code_points(std::string_view text) {
  std::size_t count = 0;
  for (const char c : text) count += (static_cast<std::uint8_t>(c) & 0xC0) != 0x80;
  return count;
}

void append_utf8(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

}  // namespace graft
