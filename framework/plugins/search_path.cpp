#include "plugins/search_path.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "checkpoint/folder.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

/// The folders of GRAFT_PLUGIN_PATH, separated by colons. Empty and relative entries would mean the
/// current directory and are passed over.
std::vector<fs::path> environment_folders() {
  const char* value = secure_getenv("GRAFT_PLUGIN_PATH");  // null when setuid
  std::vector<fs::path> folders;
  std::string_view rest = value ? value : "";
  while (!rest.empty()) {
    const auto colon = std::min(rest.find(':'), rest.size());
    const fs::path folder(rest.substr(0, colon));
    if (folder.is_absolute()) folders.push_back(folder);
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return folders;
}

}  // namespace

fs::path folder_of_libgraft() {
  Dl_info info{};
  std::error_code ignored;
  if (!dladdr(reinterpret_cast<const void*>(&plugin_folders), &info) || !info.dli_fname) return {};
  return fs::canonical(info.dli_fname, ignored).parent_path();
}

std::vector<PluginFolder> plugin_folders(const PluginSearch& search) {
  std::vector<PluginFolder> folders;
  std::vector<fs::path> seen;
  const auto add = [&](const fs::path& folder, bool required) {
    std::error_code failed;
    const fs::path absolute = fs::absolute(folder, failed);
    if (failed) return;
    fs::path canonical = fs::weakly_canonical(absolute, failed);
    if (failed) canonical = absolute;
    if (std::find(seen.begin(), seen.end(), canonical) != seen.end()) return;
    seen.push_back(canonical);
    folders.push_back({absolute, required});
  };
  for (const auto& folder : search.directories) add(folder, true);
  if (!search.use_default_path) return folders;
  for (const auto& folder : environment_folders()) add(folder, true);
  if (const auto beside = folder_of_libgraft(); !beside.empty())
    add(beside / "graft" / "plugins", false);
  add(GRAFT_INSTALLED_PLUGINS, false);
  return folders;
}

std::vector<fs::path> plugin_files(const fs::path& folder, std::string& problem) {
  std::vector<fs::path> files;
  std::error_code failed;
  for (const auto& name : names_in(folder, failed))
    if (fs::path(name).extension() == ".so") files.push_back(folder / name);
  if (failed) problem = failed.message();
  return files;
}

}  // namespace graft
