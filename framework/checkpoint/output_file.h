#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "checkpoint/file_descriptor.h"
#include "graft/error.h"
#include "graft/export.h"

namespace graft {

/// Error(resource) "cannot <doing>: <text of errno>" at `path`, with what to do about it.
Error output_error(std::string_view doing, const std::filesystem::path& path, int code);

/// A new file that is written. Every call of the system is checked, so that a full disk is seen
/// wherever it is reported; all errors are Error(resource).
class GRAFT_API OutputFile {
 public:
  /// Creates the file, which must not exist.
  explicit OutputFile(std::filesystem::path path);

  void write(std::uint64_t begin, const void* data, std::uint64_t size);
  /// Syncs to the disk and closes; without it the content is not to be trusted.
  void finish();

 private:
  std::filesystem::path path_;
  FileDescriptor fd_;
};

/// In the names of files that are not whole yet.
inline constexpr std::string_view kPartialMark = ".partial-";

/// Makes or replaces a file, which is whole or as it was: `write` gets a temporary sibling, which
/// is then synced and renamed. The caller syncs the folder.
GRAFT_API void write_whole(const std::filesystem::path& file, const std::function<void(OutputFile&)>& write);

/// Syncs the entries of a folder.
void sync_folder(const std::filesystem::path& folder);

}  // namespace graft
