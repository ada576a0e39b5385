#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graft/value.h"

namespace graft {

/// Steps that rewrite text (valid UTF-8) before it is split. Thread-safe.
class Normalizer {
 public:
  Normalizer() = default;  ///< changes nothing
  /// The "normalizer" of tokenizer.json; null changes nothing. Throws Error(model).
  explicit Normalizer(const Value* value);

  void apply(std::string& text) const;
  bool empty() const { return steps_.empty(); }

 private:
  std::vector<std::function<void(std::string&)>> steps_;
};

}  // namespace graft
