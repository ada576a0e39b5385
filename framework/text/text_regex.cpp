#include "text/text_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cctype>
#include <new>
#include <utility>

#include "graft/error.h"
#include "text/utf8.h"

namespace graft {
namespace {

constexpr std::size_t kPatternLimit = 64 * 1024;
/// Backtracking steps of one attempt to match. Attempts that only run back over one long run of
/// characters need as many steps as it has.
constexpr std::uint32_t kStepLimit = 2'000'000;
constexpr std::uint32_t kHeapLimitKib = 256 * 1024;

/// What \w is in a class, and outside of one, where Oniguruma's table for Latin-1 counts.
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kWordAlone =
    R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}\x{bd}\x{be})";

/// The classes [:name:] of Oniguruma.
constexpr std::pair<std::string_view, std::string_view> kPosix[] = {
    {"[:alpha:]", R"(\p{Alphabetic})"}, {"[:alnum:]", R"(\p{Alphabetic}\p{Nd})"},
    {"[:punct:]", R"(\p{P}\p{S})"},     {"[:space:]", R"(\p{White_Space})"},
    {"[:upper:]", R"(\p{Uppercase})"},  {"[:lower:]", R"(\p{Lowercase})"},
    {"[:digit:]", R"(\p{Nd})"},         {"[:word:]", kWord},
    {"[:cntrl:]", R"(\p{Cc})"},         {"[:blank:]", R"(\p{Zs}\t)"},
    {"[:xdigit:]", "0-9A-Fa-f"},        {"[:ascii:]", R"(\x00-\x7f)"}};

std::string message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

pcre2_code* compile(std::string_view pattern, int& error, std::size_t& offset) {
  static pcre2_compile_context* const context = [] {
    auto* made = pcre2_compile_context_create(nullptr);
    if (!made) throw std::bad_alloc();
    pcre2_set_newline(made, PCRE2_NEWLINE_LF);
    pcre2_set_bsr(made, PCRE2_BSR_UNICODE);
    pcre2_set_parens_nest_limit(made, 100);
    return made;
  }();
  return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                       PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                       &offset, context);
}

bool compiles(std::string_view pattern) {
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code = compile(pattern, error, offset);
  if (!code && error == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();
  pcre2_code_free(code);
  return code != nullptr;
}

/// Rewrites a pattern of Oniguruma (Ruby syntax) for PCRE2.
class Translation {
 public:
  explicit Translation(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
        continue;
      }
      if (in_class_) {
        inside_class(c);
      } else {
        if (c == '[') open_class();
        if (c == '(' && in_.substr(at_, 2) == "(?") options();
        if (c == '}' && in_.substr(at_ + 1, 1) == "+" && closes_interval())
          refuse("a '+' after an interval");
        copy();
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::model, "the regular expression " + quote(in_) + " uses " + what +
                                      ", which this build does not read as Oniguruma does");
  }

  void copy() { out_ += in_[at_++]; }

  void open_class() {
    in_class_ = true;
    class_start_ = at_ + (in_.substr(at_ + 1, 1) == "^" ? 2 : 1);
  }

  void inside_class(char c) {
    if (c == '&' && in_.substr(at_, 2) == "&&") refuse("an intersection of classes '&&'");
    if (c == '[') {
      const std::size_t end = in_.find(":]", at_);
      if (in_.substr(at_, 2) != "[:" || end == std::string_view::npos)
        refuse("a class inside a class");
      const std::string_view name = in_.substr(at_, end + 2 - at_);
      for (const auto& [posix, meaning] : kPosix)
        if (posix == name) {
          out_ += meaning;
          at_ = end + 2;
          return;
        }
      refuse("the class " + quote(name));
    }
    if (c == ']' && at_ > class_start_) in_class_ = false;
    copy();
  }

  /// Ruby has the options i, m (a dot matches newlines) and x; PCRE2 calls that m "s".
  void options() {
    std::size_t i = at_ + 2;
    while (i < in_.size() && (std::isalpha(static_cast<unsigned char>(in_[i])) || in_[i] == '-'))
      ++i;
    if (i < in_.size() && (in_[i] == ':' || in_[i] == ')') &&
        in_.substr(at_, i - at_).find_first_not_of("(?-ix") != std::string_view::npos)
      refuse("the options " + quote(in_.substr(at_, i - at_)));
  }

  bool closes_interval() const {
    const std::size_t open = in_.rfind('{', at_);
    return open != std::string_view::npos && open + 1 < at_ &&
           in_.substr(open + 1, at_ - open - 1).find_first_not_of("0123456789,") ==
               std::string_view::npos;
  }

  void escape() {
    if (at_ + 1 >= in_.size()) return copy();
    const char c = in_[at_ + 1];
    const std::string word = "[" + std::string(kWordAlone) + "]";
    const std::string boundary =
        "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))";
    const auto put = [&](std::string_view text) {
      out_ += text;
      at_ += 2;
    };
    switch (c) {
      case 's':
        return put(R"(\p{White_Space})");
      case 'S':
        return put(R"(\P{White_Space})");
      case 'w':
        return put(in_class_ ? kWord : word);
      case 'W':
        if (in_class_) refuse("\\W in a class");
        return put("[^" + std::string(kWordAlone) + "]");
      case 'b':
        return put(in_class_ ? "\\b" : boundary);
      case 'p':
      case 'P':
        return property();
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'v':
      case 'a':
      case 'e':
      case 'x':
      case 'd':
      case 'D':
      case 'A':
      case 'z':
      case 'Z':
      case 'G':
        if (c == 'v') return put("\\x0b");  // a vertical tab, not every vertical space
        return put(in_.substr(at_, 2));
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) refuse(std::string("\\") + c);
        return put(in_.substr(at_, 2));
    }
  }

  /// \p{Han} is the script in Oniguruma, the script extensions in PCRE2.
  void property() {
    const std::size_t end = in_.find('}', at_);
    if (in_.substr(at_ + 2, 1) != "{" || end == std::string_view::npos)
      refuse("a property without braces");
    std::string name(in_.substr(at_ + 3, end - at_ - 3));
    const bool negated = name.starts_with('^');
    if (negated) name.erase(0, 1);
    const std::string script = "sc:" + name;
    if (name.size() > 2 && compiles("\\p{" + script + "}")) name = script;
    out_ += in_.substr(at_, 2);
    out_ += negated ? "{^" : "{";
    out_ += name + "}";
    at_ = end + 1;
  }

  std::string_view in_;
  std::string out_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::size_t class_start_ = 0;
};

}  // namespace

TextRegex::TextRegex(std::string_view pattern) : pattern_(pattern) {
  if (pattern.size() > kPatternLimit)
    throw Error(ErrorKind::model, "the regular expression is too long")
        .expected("at most " + std::to_string(kPatternLimit) + " bytes")
        .found(std::to_string(pattern.size()));
  const std::string translated = Translation(pattern).run();
  int error = 0;
  std::size_t offset = 0;
  pcre2_code* code = compile(translated, error, offset);
  if (!code && error == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();
  if (!code)
    throw Error(ErrorKind::model, "the regular expression " + quote(pattern) +
                                      " does not compile (" + message(error) + ")");
  code_ = std::shared_ptr<void>(
      code, [](void* made) { pcre2_code_free(static_cast<pcre2_code*>(made)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it the interpreter does the same
}

TextRegex::Walk::Walk(const TextRegex& regex, std::string_view subject)
    : regex_(regex),
      subject_(subject),
      data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  if (!data_ || !context_) {
    pcre2_match_data_free(static_cast<pcre2_match_data*>(data_));
    pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
    throw std::bad_alloc();
  }
  auto* context = static_cast<pcre2_match_context*>(context_);
  const std::size_t steps = kStepLimit + 4 * std::min<std::size_t>(subject.size(), 1u << 28);
  pcre2_set_match_limit(context, static_cast<std::uint32_t>(steps));
  pcre2_set_heap_limit(context, kHeapLimitKib);
}

TextRegex::Walk::~Walk() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
}

bool TextRegex::Walk::next(Match& match) {
  auto* data = static_cast<pcre2_match_data*>(data_);
  while (position_ <= subject_.size()) {
    const auto attempt = [&](std::uint32_t options) {
      return pcre2_match(static_cast<const pcre2_code*>(regex_.code_.get()),
                         reinterpret_cast<PCRE2_SPTR>(subject_.data()), subject_.size(), position_,
                         options, data, static_cast<pcre2_match_context*>(context_));
    };
    int found = attempt(PCRE2_NO_UTF_CHECK);
    // Compiled code has a small stack, which a repeated group can fill on a long word.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = attempt(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
    if (found < 0)
      throw Error(ErrorKind::model, "the regular expression " + quote(regex_.pattern_) +
                                        " cannot be matched against this text (" + message(found) +
                                        ")");
    const std::size_t* range = pcre2_get_ovector_pointer(data);
    match = {range[0], range[1]};
    if (match.begin == match.end) {
      position_ = match.end < subject_.size() ? match.end + utf8_size(subject_[match.end])
                                              : subject_.size() + 1;
      if (match.end == last_end_) continue;  // an empty match right behind another does not count
    } else {
      position_ = match.end;
    }
    last_end_ = match.end;
    return true;
  }
  return false;
}

}  // namespace graft
