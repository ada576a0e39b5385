#include "rule_files.h"

#include <cstdlib>

#include "checkpoint/folder.h"
#include "graft/error.h"
#include "plugins/search_path.h"

namespace graft {

namespace fs = std::filesystem;

namespace {

/// Of a folder that need not be there; one that is and cannot be read is an error.
std::vector<fs::path> yaml_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  if (!fs::exists(folder, error)) return files;
  for (const auto& name : names_in(folder, error))
    if (fs::path(name).extension() == ".yaml") files.push_back(folder / name);
  if (error)
    throw Error(ErrorKind::resource, "the folder of registry rules cannot be read")
        .at(folder.string())
        .found(error.message());
  return files;
}

}  // namespace

std::vector<fs::path> installed_rules() {
  const auto folder = folder_of_libgraft() / "graft" / "registry";
  auto files = yaml_files(folder);
  if (files.empty())
    throw Error(ErrorKind::plugin, "the rules that come with graft are missing")
        .at(folder.string())
        .expected("defaults.yaml and others")
        .hint("copy the folder graft beside libgraft.so too, or install graft again");
  return files;
}

std::vector<fs::path> user_rules() {
  const char* config = std::getenv("XDG_CONFIG_HOME");
  const char* home = std::getenv("HOME");
  fs::path folder;
  if (config && *config)
    folder = config;
  else if (home && *home)
    folder = fs::path(home) / ".config";
  if (!folder.is_absolute()) return {};  // never the current directory
  return yaml_files(folder / "graft" / "registry");
}

}  // namespace graft
