#pragma once

#include <cstdint>
#include <string_view>

namespace graft::cli {

/// A field of /proc/self/status in bytes: "VmRSS", what the process has in memory, or "VmHWM", the
/// most it had. 0 where the system has no such file.
std::uint64_t memory_of_process(std::string_view field);

}  // namespace graft::cli
