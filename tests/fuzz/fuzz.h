#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

#include "graft/error.h"

/// What all fuzz targets share. A target reads its input as the program reads such a file. Accepting
/// it and refusing it with an Error are both right; a crash, a report of a sanitizer, another
/// exception, a leak, more memory or time than the limits of ./run fuzz, and a broken promise
/// (`require`) are findings.
namespace graft::fuzz {

/// Ends the process, which libFuzzer reports with the input, unless `kept` holds.
inline void require(bool kept, std::string_view text = {},
                    std::source_location place = std::source_location::current()) {
  if (kept) return;
  std::fprintf(stderr, "broken promise at %s:%u: %.*s\n", place.file_name(), place.line(),
               static_cast<int>(text.size()), text.data());
  __builtin_trap();
}

/// Whether a terminal would act on some byte of the text.
inline bool printable(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == 0x7F) return false;
    if (c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0)
      return false;
  }
  return true;
}

/// Whether `read` accepts its input; a refusal must say what is wrong, in text that is safe to
/// print, and blame somebody else than graft.
template <class Read>
bool accepts(Read read) {
  try {
    read();
    return true;
  } catch (const Error& error) {
    const std::string_view text = error.what();
    require(!text.empty() && printable(text) && error.kind() != ErrorKind::internal, text);
    return false;
  }
}

/// A file in memory that other code opens by its path. Every input overwrites the one before.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("fuzz", MFD_CLOEXEC)) { require(fd_ >= 0); }

  const std::filesystem::path& write(std::string_view bytes) const {
    require(::ftruncate(fd_, 0) == 0 &&
            ::pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
    return path_;
  }

 private:
  int fd_;
  std::filesystem::path path_ = "/proc/self/fd/" + std::to_string(fd_);
};

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// The texts between the zero bytes of the input, at least `least` of them.
inline std::vector<std::string_view> split(std::string_view input, std::size_t least) {
  std::vector<std::string_view> out;
  for (std::size_t at = 0; at <= input.size();) {
    const std::size_t end = std::min(input.find('\0', at), input.size());
    out.push_back(input.substr(at, end - at));
    at = end + 1;
  }
  if (out.size() < least) out.resize(least);
  return out;
}

}  // namespace graft::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
