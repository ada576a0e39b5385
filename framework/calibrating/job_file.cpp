#include "calibrating/job_file.h"

#include <ATen/Version.h>
#include <sys/stat.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cerrno>
#include <cstdio>
#include <set>
#include <system_error>

#include "checkpoint/input_file.h"
#include "checkpoint/output_file.h"
#include "checkpoint/safetensors_header.h"
#include "graft/calibration.h"
#include "graft/activations.h"
#include "graft/error.h"
#include "graft/tensors.h"
#include "kernels/cpu_level.h"

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

std::string checksum(const std::string& text) { return graft::checksum(text.data(), text.size()); }

/// A path as JSON and people read it, whatever bytes it has.
std::string plain(const fs::path& path) {
  constexpr std::size_t kLongest = 1u << 16;
  const std::string quoted = quote(path.string(), kLongest);
  return quoted.substr(1, quoted.size() - 2);
}

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

Value describe_weights(const Checkpoint& checkpoint) {
  Value out(Value::Object{});
  for (const auto& path : checkpoint.shards()) {
    const InputFile file(path);
    std::string header(std::min<std::uint64_t>(64, file.size()), '\0');
    file.read(0, header.size(), header.data());
    header.resize(kLengthBytes + safetensors_header_length(header, file.size()));
    file.read(0, header.size(), header.data());
    Value row;
    row.set("bytes", static_cast<std::int64_t>(file.size()));
    row.set("modified", file.modified());
    row.set("header", checksum(header));
    out.set(plain(path.filename()), std::move(row));
  }
  return out;
}

/// Rules decide the plan, so it says what they said.
std::string describe_plan(const Plan& plan) {
  std::string text;
  for (const auto& entry : plan.entries)
    if (entry.action != Action::keep)
      text += entry.spec.path + '\0' + entry.plugin + '\0' + entry.replacement + '\0' +
              entry.settings + '\n';
  return std::to_string(plan.count(Action::quantize)) + " modules quantized, checksum " +
         checksum(text);
}

}  // namespace

std::string checksum(const void* data, std::size_t size) {
  boost::crc_32_type sum;
  sum.process_bytes(data, size);
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

Value describe_job(const Checkpoint& checkpoint, const Plan& plan, const Value& settings,
                   const Plugins& plugins, Recipe recipe, const at::Tensor& ids) {
  Value versions(Value::Object{});
  std::set<std::string> used{plan.plugin};
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize) used.insert(entry.plugin);
  for (const auto* library : plugins.libraries())
    if (used.contains(std::string(library->id())))
      versions.set(library->id(), std::string(library->version()));
  const auto flat = ids.contiguous();
  Value text;
  text.set("shape", shape_text(ids.sizes().vec()));
  text.set("ids", checksum(flat.const_data_ptr(), flat.nbytes()));
  Value job;
  job.set("graft", GRAFT_VERSION);
  job.set("libtorch", TORCH_VERSION);
  job.set("kernels", std::string(kernels::name_of(kernels::cpu_level())) + ", LibTorch's " +
                         at::get_cpu_capability());
  job.set("activations", static_cast<std::int64_t>(activations().mode()));
  job.set("plugins", std::move(versions));
  std::error_code code;
  job.set("model", plain(fs::weakly_canonical(checkpoint.folder(), code)));
  job.set("config.json", checkpoint.config());
  job.set("weights", describe_weights(checkpoint));
  job.set("dtype", std::string(dtype_word(plan.dtype)));
  job.set("settings", settings);
  job.set("recipe", std::string(word_of(recipe)));
  job.set("plan", describe_plan(plan));
  job.set("calibration", std::move(text));
  return job;
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
