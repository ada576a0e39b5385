#pragma once

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "graft/export.h"

namespace graft {

// In place of std::filesystem's directory_iterator, is_empty and remove_all: those of libstdc++ 12
// end the process when they get no memory.

/// Names of all entries of a folder, sorted. Throws what system_error() makes.
GRAFT_API std::vector<std::string> names_in(const std::filesystem::path& folder);
/// The same; where the folder cannot be read, `error` says why and there are none.
std::vector<std::string> names_in(const std::filesystem::path& folder, std::error_code& error);

/// Removes a file or a folder with all that is in it; links are removed, not followed. 0, also
/// where nothing is there, or errno.
GRAFT_API int remove_tree(const std::filesystem::path& path) noexcept;

}  // namespace graft
