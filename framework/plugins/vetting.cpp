#include "plugins/vetting.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>

#include "graft/error.h"
#include "graft/stamp.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

/// Whether only root and this user can change what has this owner and mode.
std::optional<Refusal> insecure(const std::string& what, uid_t owner, mode_t mode) {
  const std::string way_out = " or pass --allow-insecure-plugins";
  if (owner != 0 && owner != ::geteuid())
    return Refusal{what + " belongs to user " + std::to_string(owner) + ", expected root or user " +
                   std::to_string(::geteuid()) + "; change its owner" + way_out};
  if (mode & S_IWOTH) {
    char octal[8];
    std::snprintf(octal, sizeof(octal), "%04o", static_cast<unsigned>(mode & 07777));
    return Refusal{what + " can be written by everyone (mode " + octal +
                   "), expected by its owner alone; chmod o-w it" + way_out};
  }
  return std::nullopt;
}

std::optional<Refusal> insecure(const fs::path& path, const InspectedFile& file) {
  if (auto refusal = insecure("the file", file.owner(), file.mode())) return refusal;
  struct stat folder {};
  if (::stat(path.parent_path().c_str(), &folder) != 0)
    return Refusal{"its folder cannot be examined: " + std::system_category().message(errno)};
  return insecure("its folder " + quote(path.parent_path().native()), folder.st_uid,
                  folder.st_mode);
}

std::string abi_text(const graft_stamp& stamp) {
  return std::to_string(stamp.abi_major) + "." + std::to_string(stamp.abi_minor);
}

/// "2.13" of "2.13.0+cpu": LibTorch keeps its C++ interface within a minor version.
std::string_view major_minor(std::string_view version) {
  const auto dot = version.find('.');
  return dot == version.npos ? version : version.substr(0, version.find_first_of(".+", dot + 1));
}

std::string stdlib_text(std::uint16_t stdlib) {
  return stdlib == GRAFT_STDLIB_LIBSTDCXX ? "libstdc++"
         : stdlib == GRAFT_STDLIB_LIBCXX  ? "libc++"
                                          : "standard library " + std::to_string(stdlib);
}

std::string sanitizers_text(std::uint16_t sanitizers) {
  if (sanitizers == 0) return "no sanitizer";
  if (sanitizers == GRAFT_SAN_ADDRESS) return "the address sanitizer";
  if (sanitizers == GRAFT_SAN_THREAD) return "the thread sanitizer";
  return "sanitizers " + std::to_string(sanitizers);
}

Refusal differs(const std::string& theirs, const std::string& ours, const std::string& way_out) {
  return {"built " + theirs + ", this host " + ours + "; " + way_out};
}

}  // namespace

std::optional<Refusal> compare(const graft_stamp& theirs, const graft_stamp& ours) {
  if (theirs.abi_major != ours.abi_major)
    return differs("for plugin ABI " + abi_text(theirs), "speaks " + abi_text(ours),
                   "rebuild it with this graft");
  if (theirs.abi_minor > ours.abi_minor)
    return differs("for plugin ABI " + abi_text(theirs), "speaks up to " + abi_text(ours),
                   "update graft, or rebuild it with this one");

  if (major_minor(theirs.torch) != major_minor(ours.torch))
    return differs("for torch " + std::string(theirs.torch), std::string("runs ") + ours.torch,
                   "rebuild it with -DGRAFT_TORCH_DIR=<the torch of this host>");
  const std::string same_compiler = "rebuild it with the compiler of this graft";
  if (theirs.stdlib != ours.stdlib)
    return differs("with " + stdlib_text(theirs.stdlib), "with " + stdlib_text(ours.stdlib),
                   same_compiler);
  const auto cxx11 = [](const graft_stamp& s) {
    return "with _GLIBCXX_USE_CXX11_ABI=" + std::to_string(s.cxx11_abi);
  };
  if (theirs.cxx11_abi != ours.cxx11_abi)
    return differs(cxx11(theirs), cxx11(ours), "rebuild it with the setting of this graft");
  const auto family = [](const graft_stamp& s) { return s.gxx_abi / 1000; };
  if (family(theirs) != family(ours))
    return differs("with a compiler of ABI " + std::to_string(theirs.gxx_abi),
                   "with one of ABI " + std::to_string(ours.gxx_abi), same_compiler);
  const auto debug = [](const graft_stamp& s) {
    return s.debug_stl ? "with _GLIBCXX_DEBUG" : "without _GLIBCXX_DEBUG";
  };
  if (theirs.debug_stl != ours.debug_stl)
    return differs(debug(theirs), debug(ours), "rebuild it with the setting of this graft");
  if (theirs.sanitizers != ours.sanitizers)
    return differs("with " + sanitizers_text(theirs.sanitizers),
                   "with " + sanitizers_text(ours.sanitizers), "build both from one preset");

  const auto major = [](const graft_stamp& s) { return s.cuda / 1000; };
  if (theirs.cuda && ours.cuda && major(theirs) != major(ours))
    return differs("for CUDA " + std::to_string(major(theirs)),
                   "runs CUDA " + std::to_string(major(ours)),
                   "rebuild it with the CUDA version of this host's torch");
  return std::nullopt;
}

std::uint32_t cuda_of_torch() {
  const auto& hooks = at::detail::getCUDAHooks();
  return hooks.hasCUDART() ? static_cast<std::uint32_t>(hooks.versionCUDART()) : 0;
}

VettedFile vet(const fs::path& path, bool allow_insecure) {
  VettedFile vetted;
  std::error_code failed;
  vetted.file = fs::canonical(path, failed);
  if (failed) {
    vetted.refusal = Refusal{"cannot be opened: " + failed.message()};
    return vetted;
  }
  auto opened = InspectedFile::open(vetted.file);
  if (auto* refusal = std::get_if<Refusal>(&opened)) {
    vetted.refusal = std::move(*refusal);
    return vetted;
  }
  const auto& file = std::get<InspectedFile>(opened);
  vetted.identity = {file.device(), file.inode()};
  if (!allow_insecure) vetted.refusal = insecure(vetted.file, file);
  if (vetted.refusal) return vetted;

  auto stamp = read_stamp(file);
  if (auto* refusal = std::get_if<Refusal>(&stamp)) {
    vetted.refusal = std::move(*refusal);
    return vetted;
  }
  vetted.stamp = std::get<graft_stamp>(stamp);
  vetted.refusal = compare(vetted.stamp, stamp_of_this_build("", "", cuda_of_torch()));
  return vetted;
}

}  // namespace graft
