#include "calibrating/job_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <vector>

#include "checkpoint/folder.h"
#include "checkpoint/input_file.h"
#include "checkpoint/output_file.h"
#include "graft/error.h"

namespace graft {

namespace fs = std::filesystem;

namespace {

constexpr const char* kJobFile = "job.json";
constexpr std::uint64_t kMaxJobBytes = 64u << 20;

/// A config may be as deep as JSON is read, and lies a little deeper here.
constexpr JsonLimits kLimits{.bytes = kMaxJobBytes, .depth = JsonLimits{}.depth + 8};

constexpr const char* kWayOut =
    "bring back what was there, or start again without the state (graft quantize --overwrite, or "
    "discard_job_state)";

/// Only the user's own state is used: it names files and becomes a model.
void require_own(const fs::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) throw system_error("examine", path, errno);
  if (status.st_uid == ::geteuid() && !(status.st_mode & S_IWOTH)) return;
  throw Error(ErrorKind::resource, "others may have written the state of the interrupted job")
      .at(path_text(path))
      .expected("user " + std::to_string(::geteuid()) + " as the owner, written by nobody else")
      .found("user " + std::to_string(status.st_uid) +
             (status.st_mode & S_IWOTH ? ", written by everyone" : ""))
      .hint("go on as the user who started the job, or remove the folder");
}

bool is_own_name(const std::string& name) {
  return name == kJobFile || name == kJobLock || is_record(name, 0) || is_partial(name);
}

/// The job file's content, whole and of this graft.
Value read_job_file(const fs::path& folder) {
  require_own(folder);
  const fs::path file = folder / kJobFile;
  const auto damaged = [&](const std::string& what) {
    return Error(ErrorKind::model, "the job file is damaged")
        .at(path_text(file))
        .expected("a file whose checksum is right")
        .found(what)
        .hint(
            "it cannot be gone on with: start again without the state (graft quantize --overwrite, "
            "or discard_job_state)");
  };
  const std::string text = InputFile(file).read_all(kMaxJobBytes);
  Value all;
  try {
    all = parse_json(text, kLimits);
  } catch (const Error& error) {
    throw damaged(error.what());
  }
  const Value *job = all.find("job"), *sum = all.find("crc32");
  if (!job || !sum || !sum->is_string()) throw damaged("one without job or crc32");
  const Value* call = all.find("call");
  const auto found = checksum(to_json(*job) + to_json(call ? *call : Value()));
  if (found != sum->as_string()) throw damaged(found + " in place of " + quote(sum->as_string()));
  if (const auto version = job->get_string("graft", ""); version != GRAFT_VERSION)
    throw Error(ErrorKind::model, "the job was interrupted in another version of graft")
        .at(path_text(file))
        .expected(quote(version))
        .found(quote(GRAFT_VERSION))
        .hint(kWayOut);
  return all;
}

std::string shown(const Value* value) {
  if (!value) return "nothing";
  if (value->is_string()) return quote(value->as_string());
  const auto text = to_json(*value);
  return value->is_number() || value->is_bool() ? text : quote(text);
}

/// Throws where the first difference is, naming the keys that lead there.
void require_same(const Value* was, const Value* now) {
  if (was && now && was->is_object() && now->is_object()) {
    std::vector<std::string> keys;
    for (const auto* side : {now, was})
      for (const auto& [key, value] : side->as_object())
        if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    for (const auto& key : keys) {
      try {
        require_same(was->find(key), now->find(key));
      } catch (Error& error) {
        throw error.at(quote(key));
      }
    }
    return;
  }
  if (was && now ? *was == *now : was == now) return;
  throw Error(ErrorKind::model, "this has changed since the job was interrupted")
      .expected(shown(was))
      .found(shown(now))
      .hint(kWayOut);
}

}  // namespace

std::string checksum(std::string_view bytes) {
  boost::crc_32_type sum;
  sum.process_bytes(bytes.data(), bytes.size());
  char text[16];
  std::snprintf(text, sizeof(text), "%08x", static_cast<unsigned>(sum.checksum()));
  return text;
}

std::string record_name(std::size_t number) {
  char text[48];
  std::snprintf(text, sizeof(text), "group-%06zu.safetensors", number);
  return text;
}

bool is_record(const std::string& name, std::size_t number) {
  return name.starts_with("group-") && !is_partial(name) && name >= record_name(number);
}

bool is_partial(const std::string& name) { return name.find(kPartialMark) != std::string::npos; }

void remove_file(const fs::path& file) {
  std::error_code code;
  fs::remove(file, code);
  if (code) throw output_error("remove the file", file, code.value());
}

void make_job_folder(const fs::path& folder) {
  if (::mkdir(folder.c_str(), 0700) == 0)
    return sync_folder(fs::absolute(folder).lexically_normal().parent_path());
  if (errno != EEXIST) throw output_error("create the folder", folder, errno);
  require_own(folder);
  if (has_job_state(folder)) return;
  for (const auto& name : names_in(folder))
    if (!is_own_name(name))
      throw Error(ErrorKind::usage, "the folder for the state of a job holds something else")
          .at(path_text(folder))
          .expected("a folder that is empty or not there yet")
          .found(quote(name))
          .hint("name another folder");
}

void begin_or_continue(const JobState& state, const Value& job) {
  const fs::path& folder = state.folder;
  for (const auto& name : names_in(folder))
    if (is_partial(name)) remove_file(folder / name);
  if (has_job_state(folder)) {
    const Value all = read_job_file(folder);
    try {
      return require_same(&all.at("job"), &job);
    } catch (Error& error) {
      throw error.at(path_text(folder / kJobFile));
    }
  }
  for (const auto& name : names_in(folder))
    if (is_record(name, 0)) remove_file(folder / name);
  Value all;
  all.set("crc32", checksum(to_json(job) + to_json(state.call)));
  all.set("job", job);
  all.set("call", state.call);
  const std::string text = to_json(all, 2) + "\n";
  try {
    parse_json(text, kLimits);
  } catch (Error& error) {  // JobState::call or the settings: text that is no UTF-8
    throw error.at("what the job was called with");
  }
  write_whole(folder / kJobFile,
              [&](OutputFile& file) { file.write(0, text.data(), text.size()); });
  sync_folder(folder);
}

bool has_job_state(const fs::path& folder) {
  std::error_code code;
  return fs::exists(folder / kJobFile, code);
}

Value read_job_call(const fs::path& folder) {
  const Value all = read_job_file(folder);
  const Value* call = all.find("call");
  return call ? *call : Value();
}

void discard_job_state(const fs::path& folder) {
  std::error_code code;
  if (!fs::is_directory(folder, code)) return;
  remove_file(folder / kJobFile);
  sync_folder(folder);
  for (const auto& name : names_in(folder))
    if (is_own_name(name)) remove_file(folder / name);
  fs::remove(folder, code);  // stays when it holds something else
}

}  // namespace graft
