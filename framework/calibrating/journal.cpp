#include "calibrating/journal.h"

#include <filesystem>

#include "calibrating/job_file.h"
#include "checkpoint/folder.h"
#include "checkpoint/input_file.h"
#include "checkpoint/output_file.h"
#include "graft/error.h"

namespace graft {

Journal::Journal(const JobState& state, const Value& job, const Context& context)
    : folder_(state.folder), context_(context) {
  make_job_folder(folder_);
  lock_.emplace(folder_ / kJobLock);
  begin_or_continue(state, job);
}

std::optional<GroupRecord> Journal::next(const std::vector<std::string>& modules) {
  if (!reading_) return std::nullopt;
  const auto path = folder_ / record_name(number_);
  std::string wrong;
  if (std::filesystem::exists(path)) {
    try {
      auto record = read_record(path, modules);
      ++number_;
      return record;
    } catch (const Error& error) {
      wrong = error.what();
    }
  }
  std::vector<std::string> unused;
  for (auto& name : names_in(folder_))
    if (is_record(name, number_)) unused.push_back(std::move(name));
  if (wrong.empty() && !unused.empty()) wrong = "it is missing";
  reading_ = false;
  const std::string rest = modules.front() + " and all behind it";
  if (!wrong.empty())
    context_.say(LogLevel::warning, "resume",
                 "the record " + record_name(number_) + " cannot be used (" + wrong + "): " + rest +
                     " is done again");
  else if (number_ > 0)
    context_.say(LogLevel::info, "resume",
                 std::to_string(number_) + " groups were done before; " + rest + " is to be done");
  for (const auto& name : unused) remove_file(folder_ / name);
  return std::nullopt;
}

GroupRecord Journal::read(std::size_t number, const std::vector<std::string>& modules) const {
  return read_record(folder_ / record_name(number), modules);
}

std::string Journal::next_bytes() const {
  const auto path = folder_ / record_name(number_);
  if (!reading_ || !std::filesystem::exists(path)) return {};
  const InputFile file(path);
  return file.read_all(file.size());
}

void Journal::put_next_bytes(const std::string& bytes) {
  const auto path = folder_ / record_name(number_);
  if (bytes.empty()) return remove_file(path);
  write_whole(path, [&](OutputFile& file) { file.write(0, bytes.data(), bytes.size()); });
}

void Journal::keep(const GroupRecord& record) {
  write_record(folder_ / record_name(number_), record);
  sync_folder(folder_);
  ++number_;
}

}  // namespace graft
