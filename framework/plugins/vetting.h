#pragma once

#include <sys/types.h>

#include <compare>
#include <filesystem>
#include <optional>

#include "graft/export.h"
#include "graft/plugin_abi.h"
#include "plugins/stamp.h"

namespace graft {

/// Tells files apart whatever they are called.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  auto operator<=>(const FileIdentity&) const = default;
};

/// What is known of a file without running any of it.
struct VettedFile {
  std::filesystem::path file;      ///< canonical, once it was found
  FileIdentity identity;           ///< once it was opened
  graft_stamp stamp{};             ///< all zero while it could not be read
  std::optional<Refusal> refusal;  ///< none: it may be loaded
};

/// Checks, in this order: 1 a regular file that only root or this user can change; 2 a complete
/// shared library for this machine; 3 a stamp; 4 an ABI this host speaks; 5 the same C++ world;
/// 6 the same CUDA world. `allow_insecure` skips who can change it.
VettedFile vet(const std::filesystem::path& path, bool allow_insecure);

/// The version of CUDA that LibTorch brings, as CUDA_VERSION; 0 when it brings none.
std::uint32_t cuda_of_torch();

/// Checks 4 to 6: `theirs` against a host's own stamp.
GRAFT_API std::optional<Refusal> compare(const graft_stamp& theirs, const graft_stamp& ours);

}  // namespace graft
