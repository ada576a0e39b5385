#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include "graft/job_state.h"
#include "graft/value.h"

namespace graft {

/// The lock of the process that is at work in the folder.
inline constexpr const char* kJobLock = "lock";

/// CRC-32 of the bytes, eight hexadecimal digits.
std::string checksum(std::string_view bytes);

/// Makes the folder unless it is there. Throws Error(usage) when it holds what is no state of a
/// job, Error(resource) when others may write to it.
void make_job_folder(const std::filesystem::path& folder);

/// Begins the state of `job`, or makes sure that the one in the folder is of the same job: throws
/// Error(model) naming the first thing that has changed, with both values.
void begin_or_continue(const JobState& state, const Value& job);

/// The name of the file of the group that was done as number `number`; in their order.
std::string record_name(std::size_t number);
/// Whether a file of that name is a record, from `number` on.
bool is_record(const std::string& name, std::size_t number);
/// Whether it is what a process left that died while it wrote.
bool is_partial(const std::string& name);

/// Throws Error(resource) when the file stays.
void remove_file(const std::filesystem::path& file);

}  // namespace graft
