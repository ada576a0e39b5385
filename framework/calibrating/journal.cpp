#include "calibrating/journal.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <map>

#include "applying/convert.h"
#include "calibrating/job_file.h"
#include "checkpoint/input_file.h"
#include "checkpoint/output_file.h"
#include "graft/checkpoint.h"
#include "graft/error.h"

namespace graft {

namespace {

/// A record is a safetensors file: "0.NAME" is a tensor of the first module, and beside those there
/// are
constexpr const char *kReport = "report",  ///< JSON [bytes]: the row, as in to_value
    *kScales = "scales",                   ///< when there are any
        *kSum = "crc32";                   ///< [1] int64, of all the others

using Named = std::map<std::string, at::Tensor>;

std::int64_t checksum_of(const Named& tensors) {
  boost::crc_32_type sum;
  for (const auto& [name, tensor] : tensors) {
    const std::string start =
        name + '\0' + c10::toString(tensor.scalar_type()) + c10::str(tensor.sizes());
    sum.process_bytes(start.data(), start.size());
    sum.process_bytes(tensor.const_data_ptr(), tensor.nbytes());
  }
  return sum.checksum();
}

GroupReport report_from(const Value& row) {
  GroupReport out;
  out.modules = row.get_strings("modules");
  out.tokens = row.get_int("tokens", 0);
  out.relative_error = row.get_double("relative_error", out.relative_error);
  if (const Value* errors = row.find("module_errors"))
    for (const auto& error : errors->as_array()) out.module_errors.push_back(error.as_double());
  out.fallback = row.get_string("fallback", "");
  out.seconds = row.get_double("seconds", 0);
  return out;
}

/// Throws an Error for a file that is not as it was written.
GroupRecord read_record(const std::filesystem::path& path,
                        const std::vector<std::string>& modules) {
  const Checkpoint file = Checkpoint::open_file(path);
  Named tensors;
  for (const auto& info : file.tensors()) tensors.emplace(info.name, read_tensor(file, info));
  const auto take = [&](const std::string& name) {
    auto found = tensors.extract(name);
    return found ? found.mapped() : at::Tensor();
  };
  const auto sum = take(kSum);
  if (!sum.defined() || sum.numel() != 1 || sum.scalar_type() != at::kLong)
    throw Error(ErrorKind::model, "there is no checksum");
  if (const auto found = checksum_of(tensors), expected = sum.item<std::int64_t>();
      found != expected)
    throw Error(ErrorKind::model, "the checksum is wrong")
        .expected(std::to_string(expected))
        .found(std::to_string(found));
  GroupRecord out;
  const auto report = take(kReport);
  const auto text =
      report.defined() && report.scalar_type() == at::kByte
          ? std::string_view(static_cast<const char*>(report.const_data_ptr()), report.nbytes())
          : std::string_view();
  out.row = report_from(parse_json(text));
  if (out.row.modules != modules)
    throw Error(ErrorKind::model, "it is of another group")
        .expected(quote(modules.front()))
        .found(out.row.modules.empty() ? "none" : quote(out.row.modules.front()));
  out.scales = take(kScales);
  out.modules.resize(modules.size());
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string start = std::to_string(i) + ".";
    for (auto& [name, tensor] : tensors)
      if (name.starts_with(start)) out.modules[i].set(name.substr(start.size()), tensor);
  }
  return out;
}

}  // namespace

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

void Journal::keep(const GroupRecord& record) {
  Named tensors;
  for (std::size_t i = 0; i < record.modules.size(); ++i)
    for (const auto& [name, tensor] : record.modules[i])
      tensors.emplace(std::to_string(i) + "." + name, tensor.detach().contiguous());
  if (record.scales.defined()) tensors.emplace(kScales, record.scales.contiguous());
  const auto row = to_json(to_value({record.row}).at("groups").as_array().front());
  auto report = at::empty({static_cast<std::int64_t>(row.size())}, at::kByte);
  std::copy(row.begin(), row.end(), static_cast<char*>(report.mutable_data_ptr()));
  tensors.emplace(kReport, report);
  tensors.emplace(kSum, at::full({1}, checksum_of(tensors), at::kLong));
  std::vector<TensorToWrite> out;
  for (const auto& [name, tensor] : tensors) out.push_back(to_write(name, tensor));
  write_tensor_file(folder_ / record_name(number_), std::move(out));
  sync_folder(folder_);
  ++number_;
}

}  // namespace graft
