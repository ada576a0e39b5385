#include "text/jinja_shape.h"

#include <cctype>
#include <utility>

#include "graft/error.h"

namespace graft {
namespace {

using Kind = JinjaStep::Kind;

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

[[noreturn]] void cut_off() {
  throw Error(ErrorKind::model, "the template has a tag or a string without an end");
}

/// A string literal at `at`, which moves behind it.
std::string read_string(std::string_view tag, std::size_t& at) {
  const char quote_mark = tag[at++];
  std::string out;
  for (; at < tag.size() && tag[at] != quote_mark; ++at) {
    if (tag[at] != '\\') {
      out += tag[at];
      continue;
    }
    if (++at == tag.size()) break;
    const char c = tag[at];
    if (c == 'n')
      out += '\n';
    else if (c == 't')
      out += '\t';
    else if (c == '\\' || c == '\'' || c == '"')
      out += c;
    else
      (out += '\\') += c;
  }
  if (at == tag.size()) cut_off();
  ++at;
  return out;
}

struct Word {
  std::string text;
  bool is_string;
};

std::vector<Word> words_of(std::string_view tag) {
  std::vector<Word> words;
  for (std::size_t at = 0; at < tag.size();) {
    if (is_blank(tag[at])) {
      ++at;
    } else if (tag[at] == '\'' || tag[at] == '"') {
      words.push_back({read_string(tag, at), true});
    } else if (is_name(tag[at])) {
      const std::size_t begin = at;
      while (at < tag.size() && is_name(tag[at])) ++at;
      words.push_back({std::string(tag.substr(begin, at - begin)), false});
    } else {
      const bool two = at + 1 < tag.size() && tag[at + 1] == '=';
      words.push_back({std::string(tag.substr(at, two ? 2 : 1)), false});
      at += two ? 2 : 1;
    }
  }
  return words;
}

/// Words as text: a['b'] becomes a.b; single spaces but none around dots, brackets and bars.
std::string spell(const std::vector<Word>& words, std::size_t begin, std::size_t end) {
  std::string out;
  bool glue = true;
  for (std::size_t i = begin; i < end; ++i) {
    const auto& [text, is_string] = words[i];
    if (!is_string && text == "[" && i + 2 < end && words[i + 1].is_string &&
        words[i + 2].text == "]" && !words[i + 2].is_string) {
      out += "." + words[i + 1].text;
      i += 2;
      glue = false;
      continue;
    }
    const bool tight = !is_string && (text == "." || text == "[" || text == "]" || text == "|" ||
                                      text == ")" || text == ",");
    if (!glue && !tight) out += ' ';
    out += is_string ? "'" + text + "'" : text;
    glue = !is_string && (text == "." || text == "[" || text == "|" || text == "(");
  }
  return out;
}

class Reader {
 public:
  explicit Reader(std::string_view jinja) : in_(jinja) {
    if (in_.ends_with('\n')) in_.remove_suffix(1);  // Jinja drops one
  }

  std::vector<JinjaStep> run() {
    while (at_ < in_.size()) {
      const std::size_t open = next_tag();
      std::string text(in_.substr(at_, open - at_));
      if (trim_left_) text.erase(0, text.find_first_not_of(" \t\r\n"));
      if (drop_newline_ && text.starts_with('\n')) text.erase(0, 1);
      trim_left_ = drop_newline_ = false;
      if (open == in_.size()) {
        put_text(text);
        break;
      }
      const char kind = in_[open + 1];
      at_ = open + 2;
      if (at_ < in_.size() && in_[at_] == '-') {
        text.erase(text.find_last_not_of(" \t\r\n") + 1);
        ++at_;
      } else if (kind != '{') {
        strip_line(text, open);
      }
      put_text(text);
      tag(kind);
    }
    return std::move(steps_);
  }

 private:
  /// The next "{{", "{%" or "{#", or the end.
  std::size_t next_tag() const {
    for (std::size_t i = at_; i + 1 < in_.size(); ++i)
      if (in_[i] == '{' && (in_[i + 1] == '{' || in_[i + 1] == '%' || in_[i + 1] == '#')) return i;
    return in_.size();
  }

  /// lstrip_blocks: blanks between the start of a line and a tag go.
  void strip_line(std::string& text, std::size_t open) const {
    const std::size_t kept = text.find_last_not_of(" \t");
    const std::size_t end = kept == std::string::npos ? 0 : kept + 1;
    const bool line_start =
        end ? text[end - 1] == '\n' : open == text.size() || in_[open - text.size() - 1] == '\n';
    if (line_start) text.resize(end);
  }

  void tag(char kind) {
    const char close = kind == '{' ? '}' : kind;
    const std::size_t begin = at_;
    while (at_ < in_.size() && !(in_[at_] == close && in_.substr(at_ + 1, 1) == "}")) {
      if (kind != '#' && (in_[at_] == '\'' || in_[at_] == '"'))
        read_string(in_, at_);
      else
        ++at_;
    }
    if (at_ >= in_.size()) cut_off();
    std::string_view inside = in_.substr(begin, at_ - begin);
    at_ += 2;
    if (inside.ends_with('-')) {
      trim_left_ = true;
      inside.remove_suffix(1);
    }
    drop_newline_ = kind != '{';
    if (kind == '#') return;
    const std::vector<Word> words = words_of(inside);
    if (kind == '%')
      steps_.push_back({Kind::statement, spell(words, 0, words.size())});
    else
      put_sum(words);
  }

  /// 'a' + b + 'c': one step each. Inside brackets a plus is part of its term.
  void put_sum(const std::vector<Word>& words) {
    std::size_t begin = 0;
    int depth = 0;
    for (std::size_t i = 0; i <= words.size(); ++i) {
      if (i < words.size() && !words[i].is_string) {
        depth += words[i].text == "(" || words[i].text == "[";
        depth -= words[i].text == ")" || words[i].text == "]";
      }
      const bool ends = i == words.size() || (depth == 0 && !words[i].is_string &&
                                              (words[i].text == "+" || words[i].text == "~"));
      if (!ends) continue;
      if (i == begin + 1 && words[begin].is_string)
        put_text(words[begin].text);
      else
        steps_.push_back({Kind::print, spell(words, begin, i)});
      begin = i + 1;
    }
  }

  void put_text(std::string_view text) {
    if (text.empty()) return;
    if (steps_.empty() || steps_.back().kind != Kind::text)
      steps_.push_back({Kind::text, std::string(text)});
    else
      steps_.back().value += text;
  }

  std::string_view in_;
  std::size_t at_ = 0;
  bool trim_left_ = false, drop_newline_ = false;
  std::vector<JinjaStep> steps_;
};

}  // namespace

std::vector<JinjaStep> jinja_steps(std::string_view jinja) { return Reader(jinja).run(); }

}  // namespace graft
