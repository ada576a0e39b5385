#include "checkpoint/model_files.h"

#include <string>

namespace graft {

namespace fs = std::filesystem;

bool is_module_folder(const fs::path& folder) {
  const std::string name = folder.filename().string();
  const auto digits = name.find_first_not_of("0123456789");
  std::error_code ignored;
  return digits != 0 && digits != std::string::npos && name[digits] == '_' &&
         fs::is_directory(folder, ignored);
}

}  // namespace graft
