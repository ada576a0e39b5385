#include "checkpoint/natural_order.h"

#include <algorithm>

namespace graft {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The digits at the start.
std::string_view number_at_start(std::string_view text) {
  return text.substr(0, static_cast<std::size_t>(
                            std::find_if_not(text.begin(), text.end(), is_digit) - text.begin()));
}

}  // namespace

bool natural_less(std::string_view a, std::string_view b) {
  const auto length = std::min(a.size(), b.size());
  auto i = static_cast<std::size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(length), b.begin()).first -
      a.begin());
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
