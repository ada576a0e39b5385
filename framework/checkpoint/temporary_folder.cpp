#include "checkpoint/temporary_folder.h"

#include <stdlib.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "checkpoint/folder.h"
#include "graft/error.h"

namespace graft {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder() {
  std::error_code error;
  std::string name = (fs::temp_directory_path(error) / "graft-XXXXXX").string();
  if (error || !::mkdtemp(name.data()))
    throw Error(ErrorKind::resource, "a temporary folder could not be made")
        .at(quote(name))
        .found(error ? error.message() : std::generic_category().message(errno))
        .hint("name a folder with room in TMPDIR");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  remove_tree(path_);
}

}  // namespace graft
