#include "text/byte_level.h"

#include <array>

#include "text/utf8.h"

namespace graft {
namespace {

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int, 0x144> bytes;

  Alphabet() {
    bytes.fill(-1);
    char32_t spare = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
      const char32_t c = printable ? static_cast<char32_t>(byte) : spare++;
      append_utf8(characters[static_cast<std::size_t>(byte)], c);
      bytes[c] = byte;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet made;
  return made;
}

}  // namespace

void append_byte_characters(std::string& out, std::string_view text) {
  const auto& characters = alphabet().characters;
  for (const char c : text) out += characters[static_cast<unsigned char>(c)];
}

int byte_of_character(char32_t c) { return c < alphabet().bytes.size() ? alphabet().bytes[c] : -1; }

}  // namespace graft
