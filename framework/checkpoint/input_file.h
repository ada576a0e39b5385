#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_descriptor.h"
#include "graft/error.h"

namespace graft {

/// A path as a place in a message: escaped when a terminal might act on it.
std::string path_text(const std::filesystem::path& path);

/// Error(resource) "cannot <doing>: <text of errno>" at `path`; Error(model) for the codes that say
/// that the path leads nowhere (ENOENT, ENOTDIR, ELOOP, ENXIO, ENAMETOOLONG).
Error system_error(std::string_view doing, const std::filesystem::path& path, int code);

/// A regular file that is read. Opening never blocks and refuses everything that is no regular file
/// (after symbolic links). Const functions are thread-safe.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const { return static_cast<std::uint64_t>(opened_.st_size); }

  /// Fills `out` with bytes [begin, begin + size); Error(model) when the file ends before.
  void read(std::uint64_t begin, std::uint64_t size, void* out) const;
  /// The whole file; Error(model) when it is larger than `limit`.
  std::string read_all(std::uint64_t limit) const;
  /// Throws Error(model) when size or modification time are no longer those at opening.
  void require_unchanged() const;
  /// The whole file as a read-only private map, which the result keeps alive.
  std::shared_ptr<const std::byte> map() const;
  /// Modification time at opening, "SECONDS.NANOSECONDS" since 1970.
  std::string modified() const;
  /// Device, inode, size and modification time at opening.
  std::string fingerprint() const;

 private:
  std::filesystem::path path_;
  FileDescriptor fd_;
  struct stat opened_ {};
  mutable std::mutex map_mutex_;
  mutable std::weak_ptr<const std::byte> map_;
};

}  // namespace graft
