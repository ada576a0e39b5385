#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "graft/export.h"
#include "graft/plugins.h"

namespace graft {

/// A folder to look into, and whether its absence is worth a word.
struct PluginFolder {
  std::filesystem::path path;  ///< absolute
  bool required = false;
};

/// The folders of `search` in search order, each once. The current directory is never among them
/// unless `search` names it.
GRAFT_API std::vector<PluginFolder> plugin_folders(const PluginSearch& search);

/// The *.so files of a folder sorted by name, or the system's reason in `problem`.
std::vector<std::filesystem::path> plugin_files(const std::filesystem::path& folder,
                                                std::string& problem);

/// Where libgraft.so is, links followed; rules, plugins and the calibration text lie beside it.
std::filesystem::path folder_of_libgraft();

}  // namespace graft
