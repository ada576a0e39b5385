#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace graft {

/// A regular expression of a tokenizer.json. They are written for Oniguruma with Ruby syntax; this
/// reads them with PCRE2 so that both match alike: \s, \w, \b and script names are rewritten, `^`
/// and `$` match at every line. What means something else in the two languages is refused.
/// Copies share the compiled code; const functions are thread-safe.
class TextRegex {
 public:
  /// Throws Error(model) with the place in the pattern when it does not compile.
  explicit TextRegex(std::string_view pattern);

  struct Match {
    std::size_t begin, end;
  };

  /// Walks the non-overlapping matches of one subject (valid UTF-8, kept by the caller).
  class Walk {
   public:
    Walk(const TextRegex& regex, std::string_view subject);
    ~Walk();
    Walk(const Walk&) = delete;
    Walk& operator=(const Walk&) = delete;

    /// The next match into `match`; false at the end. Throws Error(model) when matching needs more
    /// than a bounded amount of backtracking.
    bool next(Match& match);

   private:
    const TextRegex& regex_;
    std::string_view subject_;
    void* data_;
    void* context_;
    std::size_t position_ = 0;
    std::size_t last_end_ = static_cast<std::size_t>(-1);
  };

 private:
  std::string pattern_;
  std::shared_ptr<void> code_;
};

}  // namespace graft
