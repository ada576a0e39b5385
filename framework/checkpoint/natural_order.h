#pragma once

#include <string_view>

namespace graft {

/// Orders names with the numbers in them by value: "layers.2" before "layers.10". A total order, in
/// which only equal names are equivalent.
bool natural_less(std::string_view a, std::string_view b);

}  // namespace graft
