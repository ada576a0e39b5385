#pragma once

#include <string>
#include <string_view>

#include "graft/export.h"

namespace graft {

/// The SHA-256 of the bytes (FIPS 180-4), in 64 hexadecimal digits.
GRAFT_API std::string sha256(std::string_view bytes);

}  // namespace graft
