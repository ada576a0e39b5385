#pragma once

#include <filesystem>

#include "graft/export.h"
#include "graft/value.h"

namespace graft {

/// Where a quantization by calibration text keeps what it has done, so that it can go on there
/// after it was interrupted, in another process too (LoadOptions::state).
///
/// The folder has `job.json`, which says all that the result depends on, and a file for each group
/// of modules that was done; each is whole or absent and has a checksum. Host::load makes the
/// folder, for its user alone, below a parent that exists. It then belongs to the caller and stays
/// whatever becomes of the job, until discard_job_state(): call that when the model is saved.
struct JobState {
  std::filesystem::path folder;  ///< empty: nothing is kept
  /// What the caller wants to know when it starts the job again, such as its own arguments: kept in
  /// `job.json`, never looked at. Its text is UTF-8.
  Value call;
};

/// Whether `folder` holds a job to go on with.
GRAFT_API bool has_job_state(const std::filesystem::path& folder);

/// JobState::call of the job in `folder`. Throws Error(model) when `job.json` is not there, is
/// damaged or of another graft, Error(resource) when it cannot be read or others may have written
/// it.
GRAFT_API Value read_job_call(const std::filesystem::path& folder);

/// Removes a job's files from `folder`, then the folder if nothing else is in it; `job.json` goes
/// first, so that half of it is no job. Nothing happens where there is none. Throws
/// Error(resource).
GRAFT_API void discard_job_state(const std::filesystem::path& folder);

}  // namespace graft
