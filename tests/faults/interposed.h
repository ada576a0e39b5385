#pragma once

#include <cstddef>
#include <string>

/// Functions of the C library that this executable puts before the system's own, so that libgraft,
/// its plugins and the C++ library call these. Unarmed, they do what the system's do.
namespace graft::faults {

enum class Calls {
  reading,  ///< open, pread, fstat
  writing,  ///< open for writing, mkdir, flock, ftruncate, pwrite, fsync, close, rename
};
enum class How {
  fail,       ///< with `code` in errno; close does close
  once_more,  ///< pwrite, pread and fsync are interrupted (EINTR), or write and read half
};

/// Denies call number `at` (from 0) of those that follow; none when `at` is negative.
void arm_files(Calls which, long at, How how = How::fail, int code = 0);
struct FileReport {
  long calls = 0;        ///< seen while armed
  std::string denied;    ///< the function that was denied, or empty
};
FileReport disarm_files();

/// Denies allocation number `at` of those made by libgraft, a plugin, or a library that works for
/// them (the C++ library, PCRE2, yaml-cpp, ICU); none when `at` is negative. LibTorch's own are left
/// alone: it ends the process by itself.
void arm_memory(long at);
struct MemoryReport {
  long calls = 0;
  bool denied = false;
  long left = 0;            ///< allocations counted that are not freed
  std::string first_left;   ///< who made one of them
};
/// Call it when everything that was made while armed is gone again.
MemoryReport disarm_memory();

}  // namespace graft::faults
