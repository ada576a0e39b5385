#include "checkpoint/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>
#include <system_error>

#include "checkpoint/input_file.h"

namespace graft {

Error output_error(std::string_view doing, const std::filesystem::path& path, int code) {
  Error error(ErrorKind::resource,
              "cannot " + std::string(doing) + ": " + std::system_category().message(code));
  error.at(path_text(path));
  switch (code) {
    case ENOSPC:
    case EDQUOT:
      return error.hint("free some space or choose another output folder");
    case EFBIG:
      return error.hint("raise the limit with `ulimit -f` or choose another file system");
    case EACCES:
    case EPERM:
    case EROFS:
      return error.hint("choose an output folder that you may write to");
    case ENAMETOOLONG:
      return error.hint("choose a shorter name");
    case ENOENT:  // of a folder that was there: so says /proc
      return error.hint("it is gone, or takes no new files: choose an output folder on a disk");
    case ENOLCK:
    case ENOSYS:
    case EOPNOTSUPP:
      return error.hint("this file system cannot do that: choose an output folder on a local disk");
    default:
      return error;
  }
}

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (fd_.get() < 0) throw output_error("create the file", path_, errno);
}

void OutputFile::write(std::uint64_t begin, const void* data, std::uint64_t size) {
  constexpr std::uint64_t kPiece = 64u << 20;
  const auto* from = static_cast<const char*>(data);
  for (std::uint64_t done = 0; done < size;) {
    const auto piece = static_cast<std::size_t>(std::min(kPiece, size - done));
    const ssize_t n = ::pwrite(fd_.get(), from + done, piece, static_cast<off_t>(begin + done));
    if (n < 0 && errno == EINTR) continue;
    // A file system that takes nothing and names no error has no room.
    if (n <= 0) throw output_error("write the file", path_, n < 0 ? errno : ENOSPC);
    done += static_cast<std::uint64_t>(n);
  }
}

void OutputFile::finish() {
  if (::fsync(fd_.get()) != 0) throw output_error("sync the file", path_, errno);
  // After EINTR the file is closed on Linux: closing again could close another thread's file.
  if (::close(fd_.release()) != 0 && errno != EINTR)
    throw output_error("close the file", path_, errno);
}

void write_whole(const std::filesystem::path& file, const std::function<void(OutputFile&)>& write) {
  std::filesystem::path partial = file;
  partial += std::string(kPartialMark) + std::to_string(::getpid());
  std::error_code code;
  try {
    OutputFile out(partial);
    write(out);
    out.finish();
    std::filesystem::rename(partial, file, code);
    if (code) throw output_error("create the file", file, code.value());
  } catch (...) {
    std::filesystem::remove(partial, code);
    throw;
  }
}

void sync_folder(const std::filesystem::path& folder) {
  const FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) throw output_error("open the folder", folder, errno);
  // Some file systems cannot sync a folder and say EINVAL.
  if (::fsync(fd.get()) != 0 && errno != EINVAL)
    throw output_error("sync the folder", folder, errno);
}

}  // namespace graft
