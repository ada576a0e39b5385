#include <algorithm>

#include "graft/tokenizer.h"

namespace graft {
namespace {

/// A character has at most four bytes, so text that is still incomplete after this many ids will
/// not become complete.
constexpr std::size_t kWaitingLimit = 16;

}  // namespace

TextStream::TextStream(Tokenizer tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}

std::string TextStream::push(std::int64_t id) {
  if (skip_special_tokens_ && tokenizer_.is_special(id)) return {};
  ids_.push_back(id);
  std::string text;
  try {
    text = tokenizer_.decode(ids_, skip_special_tokens_);
  } catch (...) {
    ids_.pop_back();
    throw;
  }
  const bool incomplete =
      text.ends_with("\xEF\xBF\xBD") && ids_.size() - printed_ids_ < kWaitingLimit;
  if (incomplete || text.size() <= printed_.size()) return {};
  return take();
}

std::string TextStream::finish() {
  std::string rest = take();
  ids_.clear();
  printed_.clear();
  printed_ids_ = 0;
  return rest;
}

/// Decoders look at neighbours (the first token loses its space, bytes form characters), so the new
/// text is what the waiting ids add to that of the ones before them.
std::string TextStream::take() {
  const std::string text = tokenizer_.decode(ids_, skip_special_tokens_);
  const auto [old_end, text_end] =
      std::mismatch(printed_.begin(), printed_.end(), text.begin(), text.end());
  std::string fresh(text_end, text.end());
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(printed_ids_));
  printed_ids_ = ids_.size();
  printed_ = tokenizer_.decode(ids_, skip_special_tokens_);
  return fresh;
}

}  // namespace graft
