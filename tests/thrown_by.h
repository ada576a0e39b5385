#pragma once

#include <optional>
#include <string>

#include "graft/error.h"

// Last, and this header last in every file: LibTorch has a CHECK that ends the process.
#include <doctest/doctest.h>

namespace graft::test {

/// The Error that `call` throws; a failed check when it throws none or something else.
template <class Call>
Error thrown_by(Call&& call) {
  std::optional<Error> thrown;
  try {
    call();
  } catch (const Error& error) {
    thrown = error;
  } catch (const std::exception& error) {
    FAIL_CHECK("not an Error: " << error.what());
  }
  if (!thrown) {
    FAIL_CHECK("nothing was thrown");
    return Error(ErrorKind::internal, "nothing was thrown");
  }
  return *thrown;
}

template <class Call>
std::string message_of(Call&& call) {
  return thrown_by(call).what();
}

inline bool contains(const std::string& text, const std::string& part) {
  const bool found = text.find(part) != std::string::npos;
  if (!found) MESSAGE("in: " << text);
  return found;
}

}  // namespace graft::test
