#include "registry/name_match.h"

#include "graft/error.h"

namespace graft {
namespace {

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
      entry.regex.emplace("(?:" + text + ")(?:(?<=\\.)|(?=\\.)|$)", ErrorKind::model);
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
