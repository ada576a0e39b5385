#pragma once

#include <torch/version.h>

#include <cstddef>
#include <string_view>  // defines the standard library's own macros

#include "graft/plugin_abi.h"

namespace graft {

/// What this translation unit is compiled for: what a plugin states in its file and what a host
/// compares with. `cuda` is CUDA_VERSION of the kernels inside, 0 for none. Text that does not fit
/// is an error of the compiler.
constexpr graft_stamp stamp_of_this_build(std::string_view id, std::string_view version,
                                          std::uint32_t cuda = 0) {
  graft_stamp stamp{};
  stamp.size = sizeof(graft_stamp);
  stamp.abi_major = GRAFT_ABI_MAJOR;
  stamp.abi_minor = GRAFT_ABI_MINOR;
#if defined(_LIBCPP_VERSION)
  stamp.stdlib = GRAFT_STDLIB_LIBCXX;
#else
  stamp.stdlib = GRAFT_STDLIB_LIBSTDCXX;
#endif
#if defined(_GLIBCXX_USE_CXX11_ABI)
  stamp.cxx11_abi = _GLIBCXX_USE_CXX11_ABI;
#endif
  stamp.gxx_abi = __GXX_ABI_VERSION;
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
  stamp.sanitizers |= GRAFT_SAN_ADDRESS;
#endif
#if __has_feature(thread_sanitizer)
  stamp.sanitizers |= GRAFT_SAN_THREAD;
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
  stamp.sanitizers |= GRAFT_SAN_ADDRESS;
#endif
#if defined(__SANITIZE_THREAD__)
  stamp.sanitizers |= GRAFT_SAN_THREAD;
#endif
#if defined(_GLIBCXX_DEBUG)
  stamp.debug_stl = 1;
#endif
  stamp.cuda = cuda;
  const auto copy = [](std::string_view text, char* out, std::size_t size) {
    if (text.size() >= size) throw "the text is too long for the stamp";
    for (std::size_t i = 0; i < text.size(); ++i) out[i] = text[i];
  };
  copy(TORCH_VERSION, stamp.torch, sizeof(stamp.torch));
  copy(id, stamp.id, sizeof(stamp.id));
  copy(version, stamp.version, sizeof(stamp.version));
  return stamp;
}

/// `stamp` as the ELF note that hosts look for.
constexpr graft_stamp_note note_of(const graft_stamp& stamp) {
  return {sizeof("graft"), sizeof(graft_stamp), GRAFT_STAMP_NOTE_TYPE, "graft", stamp};
}

}  // namespace graft

/// Puts the constant `name`, a graft_stamp_note, where hosts read it without loading the library.
#define GRAFT_STAMP_NOTE(name, ...)                                   \
  __attribute__((used, section(".note.graft"),                        \
                 aligned(4))) constinit const graft_stamp_note name = \
      ::graft::note_of(__VA_ARGS__)
