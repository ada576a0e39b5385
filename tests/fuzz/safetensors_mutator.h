#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace graft::fuzz {

/// The length that the file says its header has.
std::uint64_t safetensors_length(std::string_view file);

/// Changes the header and keeps its length true, and the data there, most of the time.
std::string mutate_safetensors(std::string file, std::size_t most_bytes, std::mt19937& random);

}  // namespace graft::fuzz
