#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "calibrating/record_file.h"
#include "checkpoint/output_lock.h"
#include "graft/context.h"
#include "graft/export.h"
#include "graft/job_state.h"

namespace graft {

/// The groups that a job has done, on disk. They come in the same order each time, so the first
/// ones of a job that goes on are read and the others done and kept. Not thread-safe; another
/// process is kept away by a lock.
class GRAFT_API Journal {
 public:
  /// Begins or goes on with `job` (calibrating/job_file.h). `context` must outlive the journal.
  Journal(const JobState& state, const Value& job, const Context& context);

  /// The record of the next group, whose modules these are; nothing when it is to be done. From the
  /// first record on that is missing or damaged, which is said, all are removed and done again.
  std::optional<GroupRecord> next(const std::vector<std::string>& modules);

  /// The bytes of the next group's record, perhaps none, for the journals of other processes, and
  /// there in place of what they have. Nothing once a group is to be done.
  std::string next_bytes() const;
  void put_next_bytes(const std::string& bytes);
  /// Whether next() may still give a record.
  bool reading() const { return reading_; }
  /// The number of the group that next() is asked for.
  std::size_t number() const { return number_; }
  /// A record that next() gave or keep() kept. Throws an Error when it has changed since.
  GroupRecord read(std::size_t number, const std::vector<std::string>& modules) const;

  /// Keeps the group that next() gave nothing for. It is on the disk when this returns. Throws
  /// Error(resource).
  void keep(const GroupRecord& record);

 private:
  std::filesystem::path folder_;
  std::optional<OutputLock> lock_;
  const Context& context_;
  std::size_t number_ = 0;
  bool reading_ = true;
};

}  // namespace graft
