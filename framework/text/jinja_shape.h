#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace graft {

/// One step of a template in a normal form that does not depend on how it was typed.
struct JinjaStep {
  enum class Kind {
    text,       ///< prints `value`
    print,      ///< prints an expression that is no text
    statement,  ///< a {% tag %}
  };
  Kind kind;
  std::string value;  ///< "messages[0].role != 'system'": single spaces, dots, single quotes

  bool operator==(const JinjaStep&) const = default;
};

/// Takes a template apart as Jinja does with trim_blocks and lstrip_blocks. Sums of strings become
/// steps of their own and neighbouring texts are joined. Throws Error(model) for a tag or string
/// without an end.
std::vector<JinjaStep> jinja_steps(std::string_view jinja);

}  // namespace graft
