#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "graft/export.h"

namespace graft {

enum class ErrorKind {
  usage,        ///< the call or the command line is wrong
  model,        ///< a model, config or data file is invalid
  plugin,       ///< a plugin or the registry is at fault
  resource,     ///< memory, disk, permission
  quality,      ///< a quality gate failed
  coverage,     ///< coverage incomplete under --strict
  interrupted,  ///< the user asked to stop
  internal,     ///< a defect in graft
};

/// The exit code of the program for a failure of this kind (docs/cli.md), which the C interface
/// returns too.
GRAFT_API int exit_code(ErrorKind kind) noexcept;

/// What every failure in graft is thrown as. Says what, where, what was expected and found, and
/// what to do:
///
///   throw Error(ErrorKind::model, "the data range does not fit the shape")
///       .at("tensor 'a'").at("model.safetensors").expected("64 bytes").found("60 bytes")
///       .hint("download the file again");
///
/// prints "model.safetensors: tensor 'a': the data range does not fit the shape: expected 64 bytes,
/// found 60 bytes; download the file again". Text from files goes through `quote`.
class GRAFT_API Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string what);
  Error(const Error&) = default;
  Error& operator=(const Error&) = default;
  ~Error() override;

  /// Adds an outer place (file, tensor, module path); the last one added is printed first.
  Error& at(std::string_view place);
  Error& expected(std::string_view text);
  Error& found(std::string_view text);
  Error& hint(std::string_view text);

  ErrorKind kind() const noexcept { return kind_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  void compose();

  ErrorKind kind_;
  std::string place_, what_, expected_, found_, hint_, text_;
};

/// `text` in single quotes, safe to print: control characters, escapes and invalid UTF-8 as \xNN,
/// at most about `limit` bytes.
GRAFT_API std::string quote(std::string_view text, std::size_t limit = 200);

/// Those of `candidates` that look like a misspelling of `name`, best first, at most three, as
/// "'a', 'b'"; empty when none is near. For "did you mean".
GRAFT_API std::string nearest_names(std::string_view name,
                                    const std::vector<std::string>& candidates);

}  // namespace graft
