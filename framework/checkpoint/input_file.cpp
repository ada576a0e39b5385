#include "checkpoint/input_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

namespace graft {
namespace {

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISSOCK(mode)) return "a socket";
  return "something else";
}

}  // namespace

std::string path_text(const std::filesystem::path& path) {
  constexpr std::size_t kLongest =
      180;  // quote() cuts text off, and the end of a path matters most
  std::string text = path.string();
  if (text.size() > kLongest) text = ".../" + path.filename().string();
  std::string quoted = quote(text);
  return quoted.size() == text.size() + 2 ? text : quoted;
}

Error system_error(std::string_view doing, const std::filesystem::path& path, int code) {
  const bool nowhere =
      code == ENOENT || code == ENOTDIR || code == ELOOP || code == ENXIO || code == ENAMETOOLONG;
  Error error(nowhere ? ErrorKind::model : ErrorKind::resource,
              "cannot " + std::string(doing) + ": " + std::system_category().message(code));
  error.at(path_text(path));
  if (nowhere) error.hint("check the path and where its links lead");
  if (code == EMFILE) error.hint("allow more open files with `ulimit -n`");
  return error;
}

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  // O_NONBLOCK: a pipe must not wait for a writer before it is recognised and refused.
  fd_ = FileDescriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (fd_.get() < 0) throw system_error("open the file", path_, errno);
  if (::fstat(fd_.get(), &opened_) != 0) throw system_error("examine the file", path_, errno);
  if (!S_ISREG(opened_.st_mode))
    throw Error(ErrorKind::model, "this is not a regular file")
        .at(path_text(path_))
        .expected("a file")
        .found(kind_of(opened_.st_mode))
        .hint("put the file itself there");
}

void InputFile::read(std::uint64_t begin, std::uint64_t size, void* out) const {
  constexpr std::uint64_t kPiece = 64u << 20;
  auto* to = static_cast<char*>(out);
  for (std::uint64_t done = 0; done < size;) {
    const auto piece = static_cast<std::size_t>(std::min(kPiece, size - done));
    const ssize_t n = ::pread(fd_.get(), to + done, piece, static_cast<off_t>(begin + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error("read the file", path_, errno);
    if (n == 0)
      throw Error(ErrorKind::model, "the file ended while it was read")
          .at(path_text(path_))
          .expected(std::to_string(begin + size) + " bytes")
          .found(std::to_string(begin + done))
          .hint("it was cut short by another program: restore it and start again");
    done += static_cast<std::uint64_t>(n);
  }
}

std::string InputFile::read_all(std::uint64_t limit) const {
  if (size() > limit)
    throw Error(ErrorKind::model, "the file is too large")
        .at(path_text(path_))
        .expected("at most " + std::to_string(limit) + " bytes")
        .found(std::to_string(size()))
        .hint("it is not what its name says: get it from its source again");
  std::string text(size(), '\0');
  read(0, text.size(), text.data());
  return text;
}

void InputFile::require_unchanged() const {
  struct stat now {};
  if (::fstat(fd_.get(), &now) != 0) throw system_error("examine the file", path_, errno);
  if (now.st_size != opened_.st_size || now.st_mtim.tv_sec != opened_.st_mtim.tv_sec ||
      now.st_mtim.tv_nsec != opened_.st_mtim.tv_nsec)
    throw Error(ErrorKind::model, "the file was changed after it was opened")
        .at(path_text(path_))
        .expected(std::to_string(opened_.st_size) + " bytes")
        .found(std::to_string(now.st_size) +
               (now.st_size == opened_.st_size ? " with a new modification time" : ""))
        .hint("start again when nothing writes to it");
}

std::shared_ptr<const std::byte> InputFile::map() const {
  const std::lock_guard lock(map_mutex_);
  if (auto mapped = map_.lock()) return mapped;
  const std::size_t length = size();
  void* address = ::mmap(nullptr, length, PROT_READ, MAP_PRIVATE, fd_.get(), 0);
  if (address == MAP_FAILED) throw system_error("map the file", path_, errno);
  std::shared_ptr<const std::byte> mapped(
      static_cast<const std::byte*>(address),
      [length](const std::byte* start) { ::munmap(const_cast<std::byte*>(start), length); });
  map_ = mapped;
  return mapped;
}

std::string InputFile::modified() const {
  char nanoseconds[16];
  std::snprintf(nanoseconds, sizeof(nanoseconds), ".%09ld", opened_.st_mtim.tv_nsec);
  return std::to_string(opened_.st_mtim.tv_sec) + nanoseconds;
}

std::string InputFile::fingerprint() const {
  return std::to_string(opened_.st_dev) + ":" + std::to_string(opened_.st_ino) + ":" +
         std::to_string(opened_.st_size) + ":" + modified();
}

}  // namespace graft
