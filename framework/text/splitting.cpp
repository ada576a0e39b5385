#include "text/splitting.h"

#include <algorithm>

#include "text/component.h"

namespace graft {
namespace {

struct Span {
  std::size_t begin, end;
  bool match;
};

/// Joins spans into pieces as `behavior` says; the kept ones, in order, stay in `spans`.
void join(std::vector<Span>& spans, SplitBehavior behavior) {
  std::vector<Span> joined;
  joined.reserve(spans.size());
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::isolated:
      return;
    case SplitBehavior::removed:
      std::erase_if(spans, [](const Span& span) { return span.match; });
      return;
    case SplitBehavior::contiguous:
      for (const Span& span : spans) {
        if (span.match == previous && !joined.empty())
          joined.back().end = span.end;
        else
          joined.push_back(span);
        previous = span.match;
      }
      break;
    case SplitBehavior::merged_with_previous:
      for (const Span& span : spans) {
        if (span.match && !previous && !joined.empty())
          joined.back().end = span.end;
        else
          joined.push_back(span);
        previous = span.match;
      }
      break;
    case SplitBehavior::merged_with_next:
      for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
        if (span->match && !previous && !joined.empty())
          joined.back().begin = span->begin;
        else
          joined.push_back(*span);
        previous = span->match;
      }
      std::reverse(joined.begin(), joined.end());
      break;
  }
  spans = std::move(joined);
}

}  // namespace

SplitBehavior split_behavior(std::string_view name) {
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  refuse_field("behavior", name,
               "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

void split_pieces(Pieces& pieces, const Pattern& pattern, SplitBehavior behavior, bool invert) {
  std::vector<Pieces::Piece> out;
  out.reserve(pieces.pieces.size());
  std::vector<Span> spans;
  for (const auto& piece : pieces.pieces) {
    const std::string_view text = pieces.view(piece);
    spans.clear();
    std::size_t done = 0;
    pattern(text, [&](std::size_t begin, std::size_t end) {
      if (begin > done) spans.push_back({done, begin, invert});
      spans.push_back({begin, end, !invert});
      done = end;
    });
    if (done < text.size()) spans.push_back({done, text.size(), invert});
    join(spans, behavior);
    for (const Span& span : spans)
      if (span.end > span.begin)
        out.push_back(
            {piece.begin + span.begin, piece.begin + span.end, piece.at_start && span.begin == 0});
  }
  pieces.pieces = std::move(out);
}

}  // namespace graft
