#include "text/pattern.h"

#include <utility>

#include "text/component.h"
#include "text/text_regex.h"
#include "text/utf8.h"

namespace graft {

Pattern make_pattern(const Value& value) {
  const auto& object = value.as_object();
  if (object.size() != 1)
    throw Error(ErrorKind::model, "wrong pattern").expected("one field, 'String' or 'Regex'");
  const auto& [kind, member] = object.front();
  if (kind == "Regex")
    return [regex = TextRegex(member.as_string())](std::string_view text, const OnMatch& on_match) {
      TextRegex::Walk walk(regex, text);
      for (TextRegex::Match match; walk.next(match);) on_match(match.begin, match.end);
    };
  if (kind != "String") refuse_type("pattern", kind);
  return [needle = member.as_string()](std::string_view text, const OnMatch& on_match) {
    if (needle.empty()) return;
    for (std::size_t at = 0; (at = text.find(needle, at)) != std::string_view::npos;) {
      on_match(at, at + needle.size());
      at += needle.size();
    }
  };
}

Pattern character_pattern(std::function<bool(char32_t)> of_class) {
  return [of_class = std::move(of_class)](std::string_view text, const OnMatch& on_match) {
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      if (of_class(next_code_point(text, at))) on_match(begin, at);
    }
  };
}

std::string replace_matches(std::string_view text, const Pattern& pattern,
                            std::string_view content) {
  std::string out;
  std::size_t done = 0;
  pattern(text, [&](std::size_t begin, std::size_t end) {
    out += text.substr(done, begin - done);
    out += content;
    done = end;
  });
  out += text.substr(done);
  return out;
}

}  // namespace graft
