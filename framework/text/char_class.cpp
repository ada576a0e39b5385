#include "text/char_class.h"

#include <unicode/uchar.h>
#include <unicode/uscript.h>

namespace graft {
namespace {

UChar32 as_icu(char32_t c) { return static_cast<UChar32>(c); }

bool in_categories(char32_t c, std::uint32_t mask) {
  return (U_MASK(u_charType(as_icu(c))) & mask) != 0;
}

bool is_in_unicode(char32_t c, std::uint8_t version) {
  UVersionInfo age;
  u_charAge(as_icu(c), age);
  return age[0] != 0 && age[0] <= version;
}

/// Hugging Face tokenizers takes these categories from tables of Unicode 8.
bool in_old_categories(char32_t c, std::uint32_t mask) {
  return in_categories(c, mask) && (c < 0x600 || is_in_unicode(c, 8));
}

}  // namespace

bool is_space(char32_t c) { return u_isUWhiteSpace(as_icu(c)); }

bool is_number(char32_t c) { return in_categories(c, U_GC_N_MASK); }

bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > 0x20 && c < 0x7F && !u_isalnum(as_icu(c));
  return in_old_categories(c, U_GC_P_MASK);
}

bool is_word(char32_t c) {
  return u_isUAlphabetic(as_icu(c)) ||
         in_categories(c, U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK) ||
         u_hasBinaryProperty(as_icu(c), UCHAR_JOIN_CONTROL);
}

bool is_mark(char32_t c) { return in_categories(c, U_GC_M_MASK) && is_in_unicode(c, 9); }

bool is_nonspacing_mark(char32_t c) { return in_old_categories(c, U_GC_MN_MASK); }

bool is_control(char32_t c) {
  if (c == '\t' || c == '\n' || c == '\r') return false;
  return in_old_categories(c, U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK | U_GC_CS_MASK);
}

bool is_chinese(char32_t c) {
  const auto within = [c](char32_t low, char32_t high) { return c >= low && c <= high; };
  return within(0x4E00, 0x9FFF) || within(0x3400, 0x4DBF) || within(0x20000, 0x2A6DF) ||
         within(0x2A700, 0x2B73F) || within(0x2B740, 0x2B81F) || within(0x2B920, 0x2CEAF) ||
         within(0xF900, 0xFAFF) || within(0x2F800, 0x2FA1F);
}

std::int32_t script_of(char32_t c) {
  if (c == ' ') return -1;
  if (c == 0x30FC) return USCRIPT_HAN;
  UErrorCode status = U_ZERO_ERROR;
  const UScriptCode script = uscript_getScript(as_icu(c), &status);
  if (U_FAILURE(status) || script == USCRIPT_UNKNOWN) return -1;
  return script == USCRIPT_HIRAGANA || script == USCRIPT_KATAKANA ? USCRIPT_HAN : script;
}

}  // namespace graft
