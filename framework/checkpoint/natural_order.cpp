#include "checkpoint/natural_order.h"

#include <algorithm>

namespace graft {
namespace {

// Inline and without library calls: opening a checkpoint compares millions of names.
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The digits at the start.
inline std::string_view number_at_start(std::string_view text) {
  std::size_t size = 0;
  while (size < text.size() && is_digit(text[size])) ++size;
  return text.substr(0, size);
}

}  // namespace

bool natural_less(std::string_view a, std::string_view b) {
  const auto length = std::min(a.size(), b.size());
  std::size_t i = 0;
  while (i < length && a[i] == b[i]) ++i;
  if (i == a.size() && i == b.size()) return false;
  // The first difference decides, or the whole numbers when it lies in or behind digits of both.
  while (i > 0 && is_digit(a[i - 1])) --i;
  const auto x = number_at_start(a.substr(i)), y = number_at_start(b.substr(i));
  if (x.empty() || y.empty() || x == y) return a < b;
  const auto value = [](std::string_view digits) {
    return digits.substr(std::min(digits.find_first_not_of('0'), digits.size()));
  };
  const auto p = value(x), q = value(y);
  if (p.size() != q.size()) return p.size() < q.size();
  return p != q ? p < q : x.size() < y.size();
}

}  // namespace graft
