#pragma once

#include <string>
#include <string_view>

namespace graft {

/// The alphabet of byte-level BPE (GPT-2): every byte has a printable character below U+0144.
/// Appends the characters of the bytes of `text`.
void append_byte_characters(std::string& out, std::string_view text);

/// The byte of a character of that alphabet, or -1.
int byte_of_character(char32_t c);

}  // namespace graft
