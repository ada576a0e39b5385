#include "text/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "text/byte_level.h"
#include "text/char_class.h"
#include "text/component.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace graft {
namespace {

using Step = std::function<void(std::string&)>;

/// A step that gives every character of the text to `put(out, c)`.
template <class Put>
Step by_character(Put put) {
  return [put](std::string& text) {
    std::string out;
    out.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) put(out, next_code_point(text, at));
    text = std::move(out);
  };
}

/// What Hugging Face tokenizers normalizes: its tables are of Unicode 9.
const icu::UnicodeSet& normalized_characters() {
  static const icu::UnicodeSet* const set = [] {
    UErrorCode status = U_ZERO_ERROR;
    auto* made = new icu::UnicodeSet(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
    made->freeze();
    return made;
  }();
  return *set;
}

/// One of ICU's normalizers, which live as long as the process.
Step unicode_form(const icu::Normalizer2* (*instance)(UErrorCode&), std::string_view name) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* all = instance(status);
  if (U_FAILURE(status))
    throw Error(ErrorKind::internal, "ICU has no " + std::string(name) + " data");
  const auto form = std::make_shared<icu::FilteredNormalizer2>(*all, normalized_characters());
  return [form](std::string& text) {
    const bool ascii =
        std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
    if (ascii) return;
    std::string out;
    icu::StringByteSink<std::string> sink(&out);
    UErrorCode failed = U_ZERO_ERROR;
    form->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())),
                        sink, nullptr, failed);
    if (U_FAILURE(failed))
      throw Error(ErrorKind::internal, std::string("ICU: ") + u_errorName(failed));
    text = std::move(out);
  };
}

void put_lower(std::string& out, char32_t c) {
  append_utf8(out, static_cast<char32_t>(u_tolower(static_cast<UChar32>(c))));
  if (c == 0x130) append_utf8(out, 0x307);  // the only character with a longer lower case
}

void strip(std::string& text, bool left, bool right) {
  std::size_t begin = 0, end = text.size();
  while (left && begin < end) {
    std::size_t next = begin;
    if (!is_space(next_code_point(text, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    std::size_t previous = end;
    if (!is_space(previous_code_point(text, previous))) break;
    end = previous;
  }
  text = text.substr(begin, end - begin);
}

/// What sentencepiece's nmt rules do.
void put_nmt(std::string& out, char32_t c) {
  if ((c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F ||
      c == 0x9F)
    return;
  const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
  append_utf8(out, space ? U' ' : c);
}

void add_bert(const Value& value, std::vector<Step>& steps) {
  allow_fields(value, {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"});
  const bool lowercase = value.get_bool("lowercase", true);
  if (value.get_bool("clean_text", true))
    steps.push_back(by_character([](std::string& out, char32_t c) {
      if (c == 0 || c == 0xFFFD || is_control(c)) return;
      append_utf8(out, is_space(c) ? U' ' : c);
    }));
  if (value.get_bool("handle_chinese_chars", true))
    steps.push_back(by_character([](std::string& out, char32_t c) {
      if (is_chinese(c)) out += ' ';
      append_utf8(out, c);
      if (is_chinese(c)) out += ' ';
    }));
  if (value.get_bool("strip_accents", lowercase)) {
    steps.push_back(unicode_form(&icu::Normalizer2::getNFDInstance, "NFD"));
    steps.push_back(by_character([](std::string& out, char32_t c) {
      if (!is_nonspacing_mark(c)) append_utf8(out, c);
    }));
  }
  if (lowercase) steps.push_back(by_character(put_lower));
}

void add_step(const Value& value, std::vector<Step>& steps) {
  const std::string& type = type_of(value);
  if (type == "BertNormalizer") return add_bert(value, steps);
  if (type == "Replace") {
    allow_fields(value, {"pattern", "content"});
    steps.push_back([pattern = make_pattern(value.at("pattern")),
                     content = value.at("content").as_string()](std::string& text) {
      text = replace_matches(text, pattern, content);
    });
    return;
  }
  if (type == "Prepend") {
    allow_fields(value, {"prepend"});
    steps.push_back([prefix = value.at("prepend").as_string()](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    });
    return;
  }
  if (type == "Strip") {
    allow_fields(value, {"strip_left", "strip_right"});
    steps.push_back([left = value.get_bool("strip_left", true),
                     right = value.get_bool("strip_right", true)](std::string& text) {
      strip(text, left, right);
    });
    return;
  }
  allow_fields(value, {});
  if (type == "NFC") {
    steps.push_back(unicode_form(&icu::Normalizer2::getNFCInstance, type));
  } else if (type == "NFD") {
    steps.push_back(unicode_form(&icu::Normalizer2::getNFDInstance, type));
  } else if (type == "NFKC") {
    steps.push_back(unicode_form(&icu::Normalizer2::getNFKCInstance, type));
  } else if (type == "NFKD") {
    steps.push_back(unicode_form(&icu::Normalizer2::getNFKDInstance, type));
  } else if (type == "Lowercase") {
    steps.push_back(by_character(put_lower));
  } else if (type == "StripAccents") {
    steps.push_back(by_character([](std::string& out, char32_t c) {
      if (!is_mark(c)) append_utf8(out, c);
    }));
  } else if (type == "Nmt") {
    steps.push_back(by_character(put_nmt));
  } else if (type == "ByteLevel") {
    steps.push_back([](std::string& text) {
      std::string out;
      append_byte_characters(out, text);
      text = std::move(out);
    });
  } else {
    refuse_type("normalizer", type);
  }
}

}  // namespace

Normalizer::Normalizer(const Value* value) {
  for (const Value* step : flatten(value, "normalizers"))
    in_component("normalizer", *step, [&] { add_step(*step, steps_); });
}

void Normalizer::apply(std::string& text) const {
  for (const auto& step : steps_) step(text);
}

}  // namespace graft
