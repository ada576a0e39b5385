#pragma once

#include <cstdint>
#include <string_view>

namespace graft::cli {

/// A field of /proc/self/status in bytes: "VmRSS", what the process has in memory, or "VmHWM", the
/// most it had. 0 where the system has no such file.
std::uint64_t memory_of_process(std::string_view field);

/// Before a calibration of a model of `bytes`: from 1 GiB on, memory of 4 MiB and more goes back to
/// the system when it is freed. In a heap each layer left gaps that the next one's did not fit. A
/// small model keeps its heap, as fresh pages for each tensor took 6 % of the time of 135 M
/// parameters: then false. Nothing without glibc.
bool return_large_memory(std::uint64_t bytes);

}  // namespace graft::cli
