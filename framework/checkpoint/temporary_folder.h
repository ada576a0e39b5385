#pragma once

#include <filesystem>

#include "graft/export.h"

namespace graft {

/// A folder of its own below TMPDIR, for this user alone, that goes with all that is in it.
class GRAFT_API TemporaryFolder {
 public:
  /// Throws Error(resource) when it cannot be made.
  TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder();

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace graft
