// Every call of the system that a small quantize-and-save or load makes is denied once.

#include <ATen/ATen.h>

#include <cerrno>
#include <map>
#include <set>

#include "graft/host.h"
#include "interposed.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::faults;
using test::contains;
namespace fs = std::filesystem;

namespace {

const std::string kDense = "vectors/tiny_llama_dense_fp16";

std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(folder))
    out[entry.path().filename()] = test::read_file(entry.path());
  return out;
}

const Host& host() {
  static const Host one;
  return one;
}

LoadedModel quantized() {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method":"bitsandbytes","load_in_4bit":true})");
  return host().load(test::golden(kDense), options);
}

WriteOptions small_shards(bool overwrite) {
  WriteOptions options;
  options.shard_bytes = 100'000;
  options.overwrite = overwrite;
  return options;
}

/// The same save with every writing call denied once, by each of the ways.
long deny_each_call(bool overwrite, How how, const std::vector<int>& codes) {
  const LoadedModel model = quantized();
  const test::TemporaryFolder reference(test::in_memory());
  host().save(model, reference.path() / "m", small_shards(false));
  const auto good = contents(reference.path() / "m");

  std::set<std::string> denied;
  long denials = 0;
  for (const int code : codes)
    for (long at = 0;; ++at) {
      const test::TemporaryFolder folder(test::in_memory());
      const fs::path out = folder.path() / "m";
      if (overwrite) {
        fs::create_directory(out);
        folder.write("m/config.json", "{}");
      }
      std::string message;
      arm_files(Calls::writing, at, how, code);
      try {
        host().save(model, out, small_shards(overwrite));
      } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::resource);
        message = error.what();
      }
      const FileReport report = disarm_files();
      if (report.denied.empty()) {
        CHECK(message.empty());
        CHECK(contents(out) == good);
        break;
      }
      ++denials;
      denied.insert(report.denied);
      CAPTURE(report.denied);
      CAPTURE(at);
      CAPTURE(message);
      if (code == EOPNOTSUPP && !message.empty())
        CHECK(contains(message, "this file system cannot do that: choose an output folder on a"));
      if (message.empty()) {
        // Closing what was only read, or the folder, may fail without harm.
        CHECK((how == How::once_more || report.denied == "close"));
        CHECK(contents(out) == good);
      } else if (!fs::exists(out)) {
        CHECK_FALSE(overwrite);
        CHECK(how == How::fail);
      } else {
        // Either what was there, or all of it: an error after the last rename comes too late.
        const auto there = contents(out);
        const bool complete = there == good;
        CHECK((complete || (overwrite && there == decltype(there){{"config.json", "{}"}})));
        if (complete) CHECK(contains(message, "the folder"));
      }
      // Whatever happened, the next attempt works.
      host().save(model, out, small_shards(true));
      CHECK(contents(out) == good);
      CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 1);
    }
  std::string names;
  for (const auto& name : denied) names += " " + name;
  MESSAGE(denials << " calls denied:" << names);
  return denials;
}

}  // namespace

TEST_CASE("whichever call fails, a save leaves the complete output or none, and says so") {
  CHECK(deny_each_call(false, How::fail, {ENOSPC, EIO, EOPNOTSUPP}) > 20);
}

TEST_CASE("whichever call fails, an overwriting save leaves the old output or the new one") {
  CHECK(deny_each_call(true, How::fail, {ENOSPC, EIO}) > 20);
}

TEST_CASE("a write that makes no progress is an error, not a loop") {
  CHECK(deny_each_call(false, How::fail, {0}) > 20);
}

TEST_CASE("short and interrupted writes are carried on") {
  CHECK(deny_each_call(false, How::once_more, {0}) > 5);
}

TEST_CASE("whichever call fails, a calibration keeps what it has done and goes on") {
  const auto calibrate = [](const fs::path& state) {
    LoadOptions options;
    options.quantization_config = parse_json(R"({"quant_method":"awq","bits":4,"group_size":32})");
    options.calibration = at::arange(40).reshape({1, 40});
    options.state.folder = state;
    return host().load(test::golden(kDense), options);
  };
  const auto saved = [](const LoadedModel& loaded) {
    const test::TemporaryFolder out(test::in_memory());
    host().save(loaded, out.path() / "m");
    return contents(out.path() / "m");
  };
  const auto good = saved(calibrate({}));
  for (const int code : {ENOSPC, EIO}) {
    long denials = 0;
    for (long at = 0;; ++at) {
      const test::TemporaryFolder folder(test::in_memory());
      const fs::path state = folder.path() / "state";
      std::string message;
      arm_files(Calls::writing, at, How::fail, code);
      try {
        calibrate(state);
      } catch (const Error& error) {
        CHECK(error.kind() == ErrorKind::resource);
        message = error.what();
      }
      const FileReport report = disarm_files();
      if (report.denied.empty()) break;
      ++denials;
      CAPTURE(report.denied);
      CAPTURE(at);
      CAPTURE(message);
      if (message.empty()) CHECK(report.denied == "close");
      CHECK(saved(calibrate(state)) == good);
      discard_job_state(state);
      CHECK(fs::is_empty(folder.path()));
    }
    MESSAGE(denials << " calls denied");
    CHECK(denials > 50);
  }
}

TEST_CASE("whichever read fails, a load says which file, and short reads are carried on") {
  // Plugins and rules, and what LibTorch reads of the processor once, are another matter.
  host().load(test::golden(kDense));
  for (const auto& name : {kDense, std::string("vectors/tiny_llama_gptq4_v1")})
    for (const How how : {How::fail, How::once_more}) {
      long denials = 0;
      for (long at = 0;; ++at) {
        std::string message;
        arm_files(Calls::reading, at, how, EIO);
        try {
          host().load(test::golden(name));
        } catch (const Error& error) {
          CHECK(error.kind() == ErrorKind::resource);
          message = error.what();
        }
        const FileReport report = disarm_files();
        if (report.denied.empty()) break;
        ++denials;
        CAPTURE(report.denied);
        CAPTURE(at);
        CHECK(message.empty() == (how == How::once_more));
        if (how == How::fail) CHECK(contains(message, name.substr(8)));
      }
      MESSAGE(name << ": " << denials << " calls denied");
      CHECK(denials > 3);
    }
}
