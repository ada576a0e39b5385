#pragma once

#include <filesystem>

#include "checkpoint/file_descriptor.h"

namespace graft {

/// A lock file with the owner's process id. The lock itself is the kernel's (flock), so it ends
/// with the process, however that ends; a file left behind means nothing.
class OutputLock {
 public:
  /// Throws Error(resource) naming the process that holds the lock, or when there can be none.
  explicit OutputLock(std::filesystem::path path);
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;
  ~OutputLock();

 private:
  std::filesystem::path path_;
  FileDescriptor fd_;
};

}  // namespace graft
