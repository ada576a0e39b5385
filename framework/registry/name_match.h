#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"
#include "graft/regex.h"

namespace graft {

/// How exactly a rule names modules; a later one wins.
enum class Specificity { any, class_name, regex, glob, exact };

/// A rule's `match`: a module path, a glob (`*` any characters, dots included; `?` one), or "re:"
/// and a regular expression that matches the whole path.
class GRAFT_API NamePattern {
 public:
  explicit NamePattern(std::string text);
  bool matches(std::string_view path) const;
  Specificity specificity() const { return specificity_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  Specificity specificity_;
  std::optional<Regex> regex_;
};

/// A skip list ("modules_to_not_convert", "llm_int8_skip_modules"): a module is skipped when the
/// rule of Transformers 5 or that of Transformers 4 for bitsandbytes says so.
/// Remembers which entries matched; not thread-safe.
class GRAFT_API SkipNames {
 public:
  /// Throws Error(model) for an empty entry, which would match everything.
  explicit SkipNames(std::vector<std::string> entries);
  /// The entry that skips the module, or nullopt.
  std::optional<std::string> match(std::string_view path);
  std::vector<std::string> unmatched() const;

 private:
  struct Entry {
    std::string text;
    std::optional<Regex>
        regex;  ///< absent when the entry is no valid expression: compared as text only
    bool used = false;
  };
  std::vector<Entry> entries_;
};

}  // namespace graft
