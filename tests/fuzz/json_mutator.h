#pragma once

#include <cstddef>
#include <random>
#include <string>

namespace graft::fuzz {

/// `text` with something in it made wrong. While it is JSON it mostly stays JSON, with values and
/// names replaced by those that a reader is likely to get wrong; other text is changed by bytes.
std::string mutate_json(std::string text, std::size_t most_bytes, std::mt19937& random);

/// Changes bytes only.
std::string mutate_bytes(std::string text, std::size_t most_bytes);

}  // namespace graft::fuzz
