#pragma once

#include <string>

#include "graft/value.h"

namespace graft {

/// The settings that the Metaspace pre-tokenizer and decoder share.
struct Metaspace {
  enum class Prepend { always, first, never };

  /// Reads the current form and the one before tokenizers 0.15 (add_prefix_space). Throws
  /// Error(model).
  explicit Metaspace(const Value& component);

  std::string replacement;  ///< what stands for a space, one character
  Prepend prepend = Prepend::always;
  bool split = true;
};

}  // namespace graft
