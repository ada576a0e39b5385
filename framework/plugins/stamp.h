#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <variant>

#include "graft/plugin_abi.h"

namespace graft {

/// Why a plugin is not taken: what follows the file's name and a colon, with both sides and the way
/// out. A value, because refusing is no failure of the host.
struct Refusal {
  std::string reason;
};

/// A file opened for looking at: regular, read with pread, never mapped, so that nothing in it and
/// no change of it can hurt.
class InspectedFile {
 public:
  /// Does not wait for a FIFO or a device; refuses what is not a regular file.
  static std::variant<InspectedFile, Refusal> open(const std::filesystem::path& path);
  InspectedFile(InspectedFile&& other) noexcept;
  InspectedFile& operator=(InspectedFile&&) = delete;
  ~InspectedFile();

  /// Fills `out` from `offset`; false when that does not lie inside the file.
  bool read(std::uint64_t offset, void* out, std::size_t bytes) const;

  std::uint64_t size() const { return size_; }
  dev_t device() const { return device_; }
  ino_t inode() const { return inode_; }
  uid_t owner() const { return owner_; }
  mode_t mode() const { return mode_; }

 private:
  InspectedFile() = default;

  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  uid_t owner_ = 0;
  mode_t mode_ = 0;
};

/// The stamp in the ELF note of a shared library for this machine. Trusts no number in the file:
/// every offset is checked against its size, nothing is allocated from it, and the work is bounded.
/// The file is known to be complete, its strings to be terminated and id and version to be plain.
std::variant<graft_stamp, Refusal> read_stamp(const InspectedFile& file);

}  // namespace graft
