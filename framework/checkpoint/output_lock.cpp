#include "checkpoint/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "checkpoint/input_file.h"
#include "checkpoint/output_file.h"

namespace graft {
namespace {

/// Whether the path still leads to the open file: its last owner may just have removed it.
bool is_at(const std::filesystem::path& path, int fd) {
  struct stat opened {
  }, there{};
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &there) == 0 &&
         opened.st_dev == there.st_dev && opened.st_ino == there.st_ino;
}

}  // namespace

OutputLock::OutputLock(std::filesystem::path path) : path_(std::move(path)) {
  do {
    fd_ = FileDescriptor(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
    if (fd_.get() < 0) throw output_error("create the lock file", path_, errno);
    if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw output_error("lock the file", path_, errno);
      char owner[32] = {};
      const bool known = ::pread(fd_.get(), owner, sizeof(owner) - 1, 0) > 0;
      throw Error(ErrorKind::resource, "another process is writing this output")
          .at(path_text(path_))
          .found(known ? "process " + quote(owner) : "a process that is just starting")
          .hint("wait for it or choose another output folder");
    }
  } while (!is_at(path_, fd_.get()));
  const std::string owner = std::to_string(::getpid());
  ssize_t written = ::ftruncate(fd_.get(), 0);
  while (written >= 0 && written < static_cast<ssize_t>(owner.size())) {
    written = ::pwrite(fd_.get(), owner.data(), owner.size(), 0);
    if (written < 0 && errno == EINTR) {
      written = 0;
    } else if (written == 0) {
      written = -1;
      errno = ENOSPC;
    }
  }
  if (written < 0) {
    const int code = errno;
    ::unlink(path_.c_str());
    throw output_error("write the lock file", path_, code);
  }
}

OutputLock::~OutputLock() { ::unlink(path_.c_str()); }

}  // namespace graft
