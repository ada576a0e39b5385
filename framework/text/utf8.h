#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "graft/export.h"

namespace graft {

/// `text` with every maximal ill-formed part replaced by U+FFFD, as Unicode 3.9 recommends and as
/// Rust's from_utf8_lossy and Python's errors="replace" do.
std::string to_valid_utf8(std::string_view text);
bool is_valid_utf8(std::string_view text);
/// Bytes of `text` before the first that belongs to no character.
GRAFT_API std::size_t valid_utf8_prefix(std::string_view text);

/// Throws Error(usage) for zero bytes and for text that is not UTF-8, but for a broken character in
/// a hundred bytes: every large collection has some, and a tokenizer takes any bytes.
GRAFT_API void require_text(std::string_view text);

/// The code point of valid UTF-8 at `position`, which moves behind it.
char32_t next_code_point(std::string_view text, std::size_t& position);
/// The code point of valid UTF-8 that ends at `position`, which moves to its start.
char32_t previous_code_point(std::string_view text, std::size_t& position);
std::size_t count_code_points(std::string_view text);

/// Bytes of the character of valid UTF-8 that starts with `lead`.
inline std::size_t utf8_size(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

void append_utf8(std::string& text, char32_t code_point);

}  // namespace graft
