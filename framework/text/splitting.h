#pragma once

#include <string_view>

#include "text/pattern.h"
#include "text/pre_tokenizer.h"

namespace graft {

/// What becomes of the matches of a pattern at which pieces are cut.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// By the name in tokenizer.json ("MergedWithNext"); throws Error(model) for another one.
SplitBehavior split_behavior(std::string_view name);

/// Cuts every piece at the matches of `pattern`, or at what lies between them when inverted.
void split_pieces(Pieces& pieces, const Pattern& pattern, SplitBehavior behavior,
                  bool invert = false);

}  // namespace graft
