#pragma once

#include <vector>

#include "graft/value.h"
#include "text/vocabulary.h"

namespace graft {

/// The ids that the "post_processor" of tokenizer.json puts before and behind those of one text.
struct PostProcessor {
  std::vector<TokenId> before, behind;
};

/// Null puts nothing. Throws Error(model).
PostProcessor make_post_processor(const Value* value);

}  // namespace graft
