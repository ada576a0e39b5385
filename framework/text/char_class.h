#pragma once

#include <cstdint>

namespace graft {

/// Character classes of Hugging Face tokenizers, by Unicode property. Some of its tables are of
/// Unicode 8 and 9; characters that are newer have no class here either.
bool is_space(char32_t c);        ///< White_Space
bool is_number(char32_t c);       ///< Nd, Nl, No
bool is_punctuation(char32_t c);  ///< P*, and the ASCII symbols
bool is_word(char32_t c);         ///< \w of UTS 18
bool is_mark(char32_t c);         ///< M*
bool is_nonspacing_mark(char32_t c);
bool is_control(char32_t c);  ///< Cc, Cf, Co, Cs without tab and line ends
bool is_chinese(char32_t c);  ///< the blocks that BERT takes for Chinese characters

/// Script of a character for the UnicodeScripts pre-tokenizer: Hiragana and Katakana count as Han,
/// -1 for characters that go with any script.
std::int32_t script_of(char32_t c);

}  // namespace graft
