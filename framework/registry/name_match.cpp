#include "registry/name_match.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "graft/error.h"

namespace graft {
namespace {

constexpr std::uint32_t kMatchLimit = 100'000;
constexpr std::uint32_t kDepthLimit = 1'000;

std::string text_of(int code) {
  PCRE2_UCHAR message[160] = {};
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

/// Iterative: linear memory, at most |pattern| * |text| steps.
bool glob_matches(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*') {
      ++p, ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace

Regex::Regex(std::string pattern) : pattern_(std::move(pattern)) {
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern_.data()), pattern_.size(),
                    PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr);
  if (!compiled) {
    throw Error(ErrorKind::plugin, "the regular expression " + quote(pattern_) +
                                       " is not valid at character " + std::to_string(offset) +
                                       ": " + text_of(code));
  }
  code_ = std::shared_ptr<const void>(compiled, [](const void* p) {
    pcre2_code_free(const_cast<pcre2_code*>(static_cast<const pcre2_code*>(p)));
  });
}

std::optional<std::size_t> Regex::match_start(std::string_view text, bool whole) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  pcre2_set_match_limit(limits.get(), kMatchLimit);
  pcre2_set_depth_limit(limits.get(), kDepthLimit);
  const int result =
      pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                  PCRE2_ANCHORED | (whole ? PCRE2_ENDANCHORED : 0u), data.get(), limits.get());
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result == PCRE2_ERROR_MATCHLIMIT || result == PCRE2_ERROR_DEPTHLIMIT ||
      result == PCRE2_ERROR_HEAPLIMIT)
    throw Error(ErrorKind::plugin,
                "the regular expression " + quote(pattern_) + " takes too long on " + quote(text))
        .hint("write it without nested repetition");
  if (result < 0)
    throw Error(ErrorKind::plugin, "the regular expression " + quote(pattern_) +
                                       " cannot be matched with " + quote(text) + ": " +
                                       text_of(result));
  return pcre2_get_ovector_pointer(data.get())[1];
}

NamePattern::NamePattern(std::string text) : text_(std::move(text)) {
  if (text_.starts_with("re:")) {
    specificity_ = Specificity::regex;
    regex_.emplace(text_.substr(3));
  } else {
    specificity_ =
        text_.find_first_of("*?") == std::string::npos ? Specificity::exact : Specificity::glob;
  }
}

bool NamePattern::matches(std::string_view path) const {
  if (regex_) return regex_->match_start(path, /*whole=*/true).has_value();
  return specificity_ == Specificity::exact ? path == text_ : glob_matches(text_, path);
}

SkipNames::SkipNames(std::vector<std::string> entries) {
  for (auto& text : entries) {
    if (text.empty())
      throw Error(ErrorKind::model, "an empty entry in a skip list would skip every module")
          .hint("remove it");
    Entry entry{text, std::nullopt, false};
    try {
      // Transformers' boundary: the match ends behind a dot, before a dot, or at the end.
      entry.regex.emplace("(?:" + text + ")(?:(?<=\\.)|(?=\\.)|$)");
    } catch (const Error&) {
      // Names are not always expressions; the comparisons as text below still hold.
    }
    entries_.push_back(std::move(entry));
  }
}

std::optional<std::string> SkipNames::match(std::string_view path) {
  const auto dot = path.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? path : path.substr(dot + 1);
  for (auto& entry : entries_) {
    const bool v5 = path.ends_with(entry.text) || (entry.regex && entry.regex->match_start(path));
    const bool v4 = last == entry.text || path == entry.text ||
                    path.find(entry.text + ".") != std::string_view::npos;
    if (!v5 && !v4) continue;
    entry.used = true;
    return entry.text;
  }
  return std::nullopt;
}

std::vector<std::string> SkipNames::unmatched() const {
  std::vector<std::string> out;
  for (const auto& entry : entries_)
    if (!entry.used) out.push_back(entry.text);
  return out;
}

}  // namespace graft
