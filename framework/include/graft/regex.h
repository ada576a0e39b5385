#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "graft/error.h"
#include "graft/export.h"

namespace graft {

/// A compiled regular expression (PCRE2) with match and depth limits: a pattern from a file can
/// make the program neither hang nor overflow its stack. Immutable, thread-safe, cheap to copy.
class GRAFT_API Regex {
 public:
  /// `blame` is the kind of the errors: who wrote the pattern. Throws Error naming the pattern and
  /// the place of the mistake in it.
  explicit Regex(std::string pattern, ErrorKind blame = ErrorKind::plugin);
  /// The length of the match that starts at the beginning of `text`, or nullopt. `whole` asks for
  /// one that covers all of it. Throws Error naming the pattern when a limit is hit.
  std::optional<std::size_t> match_start(std::string_view text, bool whole = false) const;

 private:
  std::string pattern_;
  ErrorKind blame_;
  std::shared_ptr<const void> code_;
};

}  // namespace graft
