#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graft/value.h"

namespace graft {

/// Steps that turn tokens back into text. Thread-safe.
class Decoder {
 public:
  Decoder() = default;
  /// The "decoder" of tokenizer.json; without one tokens are joined by spaces. Throws Error(model).
  explicit Decoder(const Value* value);

  std::string apply(std::vector<std::string> tokens) const;

 private:
  bool given_ = false;
  std::vector<std::function<void(std::vector<std::string>&)>> steps_;
};

}  // namespace graft
