#include "checkpoint/folder.h"

#include <dirent.h>
#include <ftw.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>

#include "checkpoint/input_file.h"

namespace graft {

std::vector<std::string> names_in(const std::filesystem::path& folder, std::error_code& error) {
  const auto close = [](DIR* open) { ::closedir(open); };
  const std::unique_ptr<DIR, decltype(close)> open(::opendir(folder.c_str()), close);
  error = {open ? 0 : errno, std::system_category()};
  if (!open) return {};
  std::vector<std::string> names;
  const dirent* entry = nullptr;
  while (errno = 0, (entry = ::readdir(open.get()))) {
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(std::move(name));
  }
  if (errno != 0) {
    error = {errno, std::system_category()};
    return {};
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::error_code error;
  auto names = names_in(folder, error);
  if (error) throw system_error("read the folder", folder, error.value());
  return names;
}

int remove_tree(const std::filesystem::path& path) noexcept {
  constexpr int kOpenFolders = 16;
  const auto remove = [](const char* name, const struct stat*, int, FTW*) {
    return std::remove(name) == 0 || errno == ENOENT ? 0 : errno;
  };
  const int result = ::nftw(path.c_str(), remove, kOpenFolders, FTW_DEPTH | FTW_PHYS);
  const int code = result < 0 ? errno : result;
  return code == ENOENT ? 0 : code;
}

}  // namespace graft
