#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cstdio>
#include <map>

#include "../host/edited_folder.h"
#include "graft/activations.h"
#include "graft/job_state.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

const std::string kLlama = "vectors/tiny_llama_dense_fp16",
                  kMoe = "vectors/tiny_qwen3moe_dense_fp16";

constexpr const char *kGptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})",
                     *kAwq = R"({"quant_method": "awq", "bits": 4, "group_size": 32})";
constexpr const char* kSettings[] = {
    kGptq,
    R"({"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": false})",
    R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true})",
    R"({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"})",
    kAwq,
    R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"})",
    R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})",
    R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true})"};

TestHost& host() {
  static TestHost instance;
  return instance;
}

/// A quantization that can be stopped when it is about to do another group.
struct Calibration {
  fs::path model;
  std::string settings = kGptq;
  std::optional<at::ScalarType> dtype{};
  fs::path state{};
  at::Tensor ids{};
  Recipe recipe = Recipe::standard;
  int polish_steps = 0;
  std::uint64_t groups = 1u << 20;  ///< that it may do
  std::function<void()> in_between{};

  std::vector<std::string> warnings{}, notes{};
  std::uint64_t total = 0;

  LoadedModel load() {
    LoadOptions options;
    options.quantization_config = parse_json(settings);
    options.dtype = dtype;
    options.calibration = ids.defined() ? ids : some_ids(model);
    options.recipe = recipe;
    options.polish_steps = polish_steps;
    options.state = {state, Value("the caller's own")};
    options.context.log = [this](LogLevel level, std::string_view, std::string_view text) {
      (level == LogLevel::warning ? warnings : notes).emplace_back(text);
    };
    options.context.progress = [this](std::string_view stage, std::uint64_t done,
                                      std::uint64_t all) {
      if (stage != "calibrate") return true;
      total = all;
      if (in_between) in_between();
      return done < groups;
    };
    return host().host->load(model, options);
  }

  /// Does so many groups and is interrupted then.
  void interrupted_after(std::uint64_t number) {
    groups = number;
    const auto error = thrown_by([&] { load(); });
    CHECK((error.kind() == ErrorKind::interrupted));
    groups = 1u << 20;
    warnings.clear();
    notes.clear();
  }

  static at::Tensor some_ids(const fs::path& folder) {
    const auto vocabulary = Checkpoint::open(folder).config().get_int("vocab_size", 0);
    at::manual_seed(2);
    return at::randint(vocabulary, {2, 40}, at::kLong);
  }
};

std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(folder))
    out[entry.path().filename().string()] = read_file(entry.path());
  return out;
}

/// The files that saving it makes.
std::map<std::string, std::string> saved(const LoadedModel& loaded) {
  const TemporaryFolder out(in_memory());
  host().host->save(loaded, out.path() / "m");
  return files_of(out.path() / "m");
}

fs::path record(const fs::path& state, int number) {
  char name[48];
  std::snprintf(name, sizeof(name), "group-%06d.safetensors", number);
  return state / name;
}

fs::path golden(const std::string& name) { return fs::path(GRAFT_TEST_DATA) / name; }

void write_file(const fs::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary) << content;
}

/// Changes the job file as another graft would have written it.
void forge(const fs::path& state, const std::function<void(Value& job)>& edit) {
  Value all = parse_json(read_file(state / "job.json"));
  Value job = all.at("job");
  edit(job);
  const std::string text = to_json(job) + to_json(all.at("call"));
  boost::crc_32_type sum;
  sum.process_bytes(text.data(), text.size());
  char digits[16];
  std::snprintf(digits, sizeof(digits), "%08x", static_cast<unsigned>(sum.checksum()));
  all.set("job", job);
  all.set("crc32", digits);
  write_file(state / "job.json", to_json(all));
}

}  // namespace

TEST_CASE(
    "an interrupted calibration goes on to the same files, whatever the method and the threads") {
  const int before = at::get_num_threads();
  for (const char* settings : kSettings)
    for (const auto dtype : {std::optional<at::ScalarType>(), std::optional(at::kFloat)}) {
      CAPTURE(settings);
      Calibration whole{golden(kLlama), settings, dtype};
      const auto expected = saved(whole.load());
      for (const std::uint64_t done : {1, 4, 7}) {
        CAPTURE(done);
        const TemporaryFolder folder(in_memory());
        Calibration parts{golden(kLlama), settings, dtype, folder.path() / "state"};
        at::set_num_threads(2);
        parts.interrupted_after(done);
        CHECK(fs::exists(record(parts.state, static_cast<int>(done) - 1)));
        CHECK_FALSE(fs::exists(record(parts.state, static_cast<int>(done))));
        at::set_num_threads(1);
        const auto loaded = parts.load();
        at::set_num_threads(before);
        CHECK(saved(loaded) == expected);
        CHECK(parts.warnings == whole.warnings);
        CHECK(loaded.calibration.size() == whole.total);
      }
    }
}

TEST_CASE("a calibration that polishes goes on in the middle of a layer, and behind it") {
  const auto ids = at::cat(std::vector<at::Tensor>(30, Calibration::some_ids(golden(kMoe))));
  const EditedFolder strong(kLlama, strengthen_a_channel);  // up_proj takes scales
  for (const auto& [model, settings] :
       {std::pair(golden(kLlama), kGptq), std::pair(golden(kLlama), kAwq),
        std::pair(strong.path(), kAwq), std::pair(golden(kMoe), kGptq)}) {
    CAPTURE(model.string());
    CAPTURE(std::string(settings));
    Calibration whole{.model = model, .settings = settings, .ids = ids, .polish_steps = 8};
    const auto loaded = whole.load();
    const auto expected = saved(loaded);
    REQUIRE(!loaded.polished.empty());
    const std::uint64_t of_layer = whole.total / loaded.polished.size();
    // Within a layer; as it is polished; in the next one; all but the last.
    for (const std::uint64_t done :
         {of_layer - 1, of_layer, std::min(of_layer + 1, whole.total), whole.total}) {
      CAPTURE(done);
      const TemporaryFolder folder(in_memory());
      Calibration parts = whole;
      parts.state = folder.path() / "state";
      parts.interrupted_after(done);
      const auto rest = parts.load();
      CHECK(saved(rest) == expected);
      REQUIRE(rest.polished.size() == loaded.polished.size());
      for (std::size_t i = 0; i < rest.polished.size(); ++i) {
        CHECK(rest.polished[i].error_before == loaded.polished[i].error_before);
        CHECK(rest.polished[i].error_after == loaded.polished[i].error_after);
        CHECK(rest.polished[i].left == loaded.polished[i].left);
      }
      // All is there already.
      CHECK(saved(parts.load()) == expected);
    }
  }
}

TEST_CASE("a calibration that is interrupted again and again does each group once") {
  for (const auto& [model, settings] : {std::pair(kLlama, kAwq), std::pair(kMoe, kGptq)}) {
    CAPTURE(model);
    Calibration whole{golden(model), settings};
    const auto expected = saved(whole.load());
    const TemporaryFolder folder(in_memory());
    Calibration parts{golden(model), settings, {}, folder.path() / "state"};
    for (std::uint64_t done = 0; done <= whole.total; done += 3) {
      parts.interrupted_after(done);
      CHECK(has_job_state(parts.state));
    }
    const auto before = files_of(parts.state);
    const auto loaded = parts.load();
    CHECK(saved(loaded) == expected);
    for (const auto& [name, content] : files_of(parts.state))
      if (const auto known = before.find(name); known != before.end())
        CHECK(known->second == content);  // with the seconds that it took
    CHECK(files_of(parts.state).size() == whole.total + 1);
    // All is there already: the model is made without quantizing.
    CHECK(saved(parts.load()) == expected);
  }
}

TEST_CASE("the scales that a norm took are kept with the group that wanted them") {
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kAwq, {}, folder.path() / "state"};
  parts.interrupted_after(1);
  CHECK(Checkpoint::open_file(record(parts.state, 0)).find("scales"));
}

TEST_CASE(
    "the scales that up_proj took are kept, and taken again by the one that is brought back") {
  const EditedFolder strong(kLlama, strengthen_a_channel);
  Calibration whole{strong.path(), kAwq};
  const auto expected = saved(whole.load());
  const TemporaryFolder folder(in_memory());
  Calibration parts{strong.path(), kAwq, {}, folder.path() / "state"};
  parts.interrupted_after(4);
  CHECK(Checkpoint::open_file(record(parts.state, 3)).find("scales"));
  CHECK(saved(parts.load()) == expected);
}

TEST_CASE("what is kept is for its user alone, and goes when the caller says so") {
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kGptq, {}, folder.path() / "state"};
  CHECK_FALSE(has_job_state(parts.state));
  parts.interrupted_after(2);
  struct stat status{};
  REQUIRE(::stat(parts.state.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  CHECK(has_job_state(parts.state));
  CHECK(read_job_call(parts.state) == Value("the caller's own"));
  parts.load();
  CHECK(has_job_state(parts.state));
  write_file(parts.state / "note", "somebody else's");
  discard_job_state(parts.state);
  CHECK_FALSE(has_job_state(parts.state));
  CHECK(files_of(parts.state) == std::map<std::string, std::string>{{"note", "somebody else's"}});
  fs::remove(parts.state / "note");
  discard_job_state(parts.state);
  CHECK_FALSE(fs::exists(parts.state));
  discard_job_state(parts.state);  // nothing to do
}

TEST_CASE("without a folder for the state, and without calibration text, nothing is kept") {
  const TemporaryFolder folder(in_memory());
  Calibration{golden(kLlama)}.load();
  LoadOptions options;
  options.quantization_config = parse_json(kSettings[6]);
  options.state.folder = folder.path() / "state";
  host().host->load(golden(kLlama), options);
  CHECK(fs::is_empty(folder.path()));
}

TEST_CASE("from a damaged or missing record on all is done again, and that is said") {
  Calibration whole{golden(kLlama)};
  const auto expected = saved(whole.load());
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kGptq, {}, folder.path() / "state"};
  const auto damaged = [&](const std::function<void(const fs::path&)>& damage,
                           const std::string& says) {
    CAPTURE(says);
    discard_job_state(parts.state);
    parts.interrupted_after(6);
    const auto before = files_of(parts.state);
    damage(record(parts.state, 2));
    // The next run removes those behind it, although it is stopped before it made them again.
    parts.interrupted_after(2);
    parts.groups = 2;
    CHECK_THROWS(parts.load());
    parts.groups = 1u << 20;
    CHECK(fs::exists(record(parts.state, 1)));
    discard_job_state(parts.state);
    parts.interrupted_after(6);
    damage(record(parts.state, 2));
    const auto loaded = parts.load();
    REQUIRE(parts.warnings.size() == 1);
    CHECK(
        contains(parts.warnings[0], "the record group-000002.safetensors cannot be used (" + says));
    CHECK(contains(parts.warnings[0],
                   "model.layers.0.mlp.gate_proj and all behind it is done again"));
    CHECK(saved(loaded) == expected);
    parts.warnings.clear();
    CHECK(before.size() == 7);
  };
  const auto flip = [](std::size_t place) {
    return [place](const fs::path& file) {
      auto content = read_file(file);
      const auto at = place < content.size() ? place : content.size() - 1;
      content[at] = static_cast<char>(content[at] ^ 1);
      write_file(file, content);
    };
  };
  damaged(flip(0), "");
  damaged(flip(60), "");
  damaged(flip(1u << 30), "the checksum is wrong");
  damaged([](const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }, "");
  damaged([](const fs::path& file) { write_file(file, ""); }, "");
  damaged([](const fs::path& file) { fs::remove(file); }, "it is missing");
  damaged(
      [](const fs::path& file) {
        fs::copy_file(file.parent_path() / "group-000000.safetensors", file,
                      fs::copy_options::overwrite_existing);
      },
      "it is of another group: expected 'model.layers.0.mlp.gate_proj', found "
      "'model.layers.0.self_attn.q_proj'");
}

TEST_CASE("a byte of a record that changed is found wherever it is") {
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kGptq, {}, folder.path() / "state"};
  parts.interrupted_after(2);
  const auto good = read_file(record(parts.state, 0));
  for (std::size_t at = 0; at < good.size(); at += 1 + good.size() / 40) {
    CAPTURE(at);
    auto bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    write_file(record(parts.state, 0), bad);
    parts.groups = 1;
    CHECK_THROWS(parts.load());
    CHECK(parts.warnings.size() == 1);
    parts.warnings.clear();
  }
}

TEST_CASE("a job is not gone on with when what it depends on has changed, which is named") {
  const EditedFolder model(kLlama, [](Value&, RawTensors&) {});
  const TemporaryFolder folder(in_memory());
  const Calibration same{model.path(), kGptq, {}, folder.path() / "state"};
  Calibration(same).interrupted_after(3);
  const auto before = files_of(same.state);
  const auto refused = [&](Calibration changed, const std::string& says) {
    CAPTURE(says);
    const auto error = thrown_by([&] { changed.load(); });
    CHECK((error.kind() == ErrorKind::model));
    CHECK(contains(error.what(), (same.state / "job.json").string()));
    CHECK(contains(error.what(), says));
    CHECK(contains(error.what(), "graft quantize --overwrite"));
  };
  auto other = same;
  other.settings = R"({"quant_method": "gptq", "bits": 8, "group_size": 32})";
  refused(
      other,
      "'settings': 'bits': this has changed since the job was interrupted: expected 4, found 8");
  other = same;
  other.dtype = at::kFloat;
  refused(other,
          "'dtype': this has changed since the job was interrupted: expected 'float16', found "
          "'float32'");
  other = same;
  other.ids = Calibration::some_ids(model.path()).flip(1).contiguous();
  refused(other, "'calibration': 'ids': this has changed");
  other.ids = Calibration::some_ids(model.path()).narrow(1, 0, 20);
  refused(other,
          "'calibration': 'shape': this has changed since the job was interrupted: expected "
          "'[2, 40]', found '[2, 20]'");
  other = same;
  other.recipe = Recipe::fast;
  refused(other,
          "'recipe': this has changed since the job was interrupted: expected 'default', found "
          "'fast'");
  other = same;
  other.model = golden(kLlama);
  refused(other, "'model': this has changed");
  set_activation_mode(GRAFT_ACT_A8);
  refused(same,
          "'activations': this has changed since the job was interrupted: expected 0, found 2");
  set_activation_mode(GRAFT_ACT_AUTO);

  const auto weights = model.path() / "model.safetensors";
  const auto time = fs::last_write_time(weights);
  fs::last_write_time(weights, time + std::chrono::seconds(1));
  refused(same, "'weights': 'model.safetensors': 'modified': this has changed");
  const auto content = read_file(weights);
  write_file(weights, content);
  fs::last_write_time(weights, time);
  const auto config = read_file(model.path() / "config.json");
  Value edited = parse_json(config);
  edited.set("rms_norm_eps", 0.5);
  write_file(model.path() / "config.json", to_json(edited));
  refused(same,
          "'config.json': 'rms_norm_eps': this has changed since the job was interrupted: "
          "expected 1e-06, found 0.5");
  write_file(model.path() / "config.json", config);
  CHECK(files_of(same.state) == before);

  forge(same.state, [](Value& job) { job.set("graft", "0.0.9"); });
  refused(same,
          "the job was interrupted in another version of graft: expected '0.0.9', found '0.1.0'");
  CHECK(contains(message_of([&] { read_job_call(same.state); }), "another version of graft"));
  write_file(same.state / "job.json", before.at("job.json"));
  forge(same.state, [](Value& job) {
    for (auto& [key, value] : job.as_object())
      if (key == "plugins") value.set("org.graft.gptq", "0.0.9");
  });
  refused(same,
          "'plugins': 'org.graft.gptq': this has changed since the job was interrupted: expected "
          "'0.0.9', found");
  write_file(same.state / "job.json", before.at("job.json"));
  CHECK(Calibration(same).load().calibration.size() == 8);
}

TEST_CASE("a job file that is damaged is refused, and nothing is removed") {
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kGptq, {}, folder.path() / "state"};
  parts.interrupted_after(2);
  const auto good = read_file(parts.state / "job.json");
  const auto digit = good.find("\"vocab_size\": ") + 14;
  REQUIRE(digit < good.size());
  for (const auto& bad : {std::string(), good.substr(0, good.size() / 2), std::string("{}"),
                          std::string(good).replace(digit, 1, good[digit] == '9' ? "8" : "9")}) {
    write_file(parts.state / "job.json", bad);
    const auto error = thrown_by([&] { parts.load(); });
    CHECK((error.kind() == ErrorKind::model));
    CHECK(contains(error.what(),
                   "job.json: the job file is damaged: expected a file whose checksum is "
                   "right, found "));
    CHECK(contains(error.what(), "start again without the state"));
    CHECK(contains(message_of([&] { read_job_call(parts.state); }), "the job file is damaged"));
    CHECK(fs::exists(record(parts.state, 1)));
  }
}

TEST_CASE("a folder for the state that others may write to, or with other files, is refused") {
  const TemporaryFolder folder(in_memory());
  Calibration parts{golden(kLlama), kGptq, {}, folder.path() / "state"};
  fs::create_directory(parts.state);
  write_file(parts.state / "thesis.tex", "");
  auto error = thrown_by([&] { parts.load(); });
  CHECK((error.kind() == ErrorKind::usage));
  CHECK(contains(error.what(),
                 "holds something else: expected a folder that is empty or not there "
                 "yet, found 'thesis.tex'; name another folder"));
  fs::remove(parts.state / "thesis.tex");
  parts.interrupted_after(1);
  ::chmod(parts.state.c_str(), 0777);
  error = thrown_by([&] { parts.load(); });
  CHECK((error.kind() == ErrorKind::resource));
  CHECK(contains(error.what(), "others may have written the state of the interrupted job"));
  CHECK(contains(error.what(), "written by everyone"));
}

TEST_CASE("a state that somebody is at work on is refused") {
  const TemporaryFolder folder(in_memory());
  Calibration first{golden(kLlama), kGptq, {}, folder.path() / "state"};
  std::string refusal;
  first.in_between = [&] {
    if (refusal.empty())
      refusal = message_of([&] { Calibration{golden(kLlama), kGptq, {}, first.state}.load(); });
  };
  first.load();
  CHECK(contains(refusal, "another process is writing this output: found process '"));
}
