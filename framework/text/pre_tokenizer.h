#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "graft/value.h"

namespace graft {

/// A text cut into pieces, in order. What lies between pieces is dropped.
struct Pieces {
  struct Piece {
    std::size_t begin, end;  ///< bytes of `text`
    bool at_start;           ///< starts where the whole input does
  };

  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

/// Steps that cut text into the pieces that the model splits on its own. Thread-safe.
class PreTokenizer {
 public:
  PreTokenizer() = default;  ///< cuts nothing
  /// The "pre_tokenizer" of tokenizer.json; null cuts nothing. Throws Error(model).
  explicit PreTokenizer(const Value* value);

  void apply(Pieces& pieces) const;

 private:
  std::vector<std::function<void(Pieces&)>> steps_;
};

}  // namespace graft
