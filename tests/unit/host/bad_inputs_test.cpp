// Whole model folders with one thing wrong, and processes in odd states.

#include <ATen/Parallel.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <clocale>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <locale>
#include <map>
#include <thread>

#include "edited_folder.h"
#include "graft/pool.h"
#include "model_folder.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

const std::string kDense = "vectors/tiny_llama_dense_fp16";
const std::string kGptq = "vectors/tiny_llama_gptq4_v1";
const std::string kGptOss = "arch/gpt_oss";
const std::string kUp = "model.layers.0.mlp.up_proj";

LoadOptions to_nf4() {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  return options;
}

/// What loading a changed golden folder throws; empty when it loads.
std::string refusal(const std::string& golden, const EditedFolder::Edit& edit,
                    const LoadOptions& options = {}) {
  const EditedFolder folder(golden, edit);
  const TestHost host;
  try {
    host.host->load(folder.path(), options);
    return "";
  } catch (const Error& error) {
    CHECK(error.kind() == ErrorKind::model);
    CHECK(contains(error.what(), "; "));  // behind it stands what to do
    return error.what();
  }
}

void check_refused(const std::string& golden, const EditedFolder::Edit& edit,
                   const std::vector<std::string>& words, const LoadOptions& options = {}) {
  const std::string text = refusal(golden, edit, options);
  for (const auto& word : words)
    CHECK_MESSAGE(contains(text, word), "expected: " << word << "\nin: " << text);
}

/// Files of a folder with their content.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(folder))
    out[entry.path().filename()] = read_file(entry.path());
  return out;
}

/// Sets a C locale with a decimal comma: one that is installed, or one made in `folder`.
bool use_comma_of_c(const fs::path& folder) {
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8", "fr_FR.utf8"})
    if (std::setlocale(LC_ALL, name)) return true;
  const std::string made = (folder / "de_DE.UTF-8").string();
  const std::string command = "localedef -i de_DE -f UTF-8 '" + made + "' 2>/dev/null";
  if (std::system(command.c_str()) != 0) return false;
  ::setenv("LOCPATH", folder.c_str(), 1);
  const bool set = std::setlocale(LC_ALL, "de_DE.UTF-8") != nullptr;
  ::unsetenv("LOCPATH");
  return set;
}

/// The golden model in another method or as it is, saved.
std::map<std::string, std::string> saved(const std::string& golden, const LoadOptions& options) {
  const TemporaryFolder out(in_memory());
  const TestHost host;
  host.host->save(host.host->load(test::golden(golden), options), out.path() / "m");
  return contents(out.path() / "m");
}

}  // namespace

TEST_CASE("group sizes that do not divide the tensors of the file are refused by shape") {
  for (const std::int64_t size : {-1, 48, 16, 64})
    check_refused(
        kGptq, [&](Value& config, RawTensors&) { settings_of(config).set("group_size", size); },
        {"do not fit the model", "scales", "expected"});
}

TEST_CASE("a tensor with a dimension of zero is refused where the model needs values") {
  check_refused(kDense,
                [](Value&, RawTensors& tensors) {
                  auto& raw = tensors.at(kUp + ".weight");
                  raw.shape = {0, 64};
                  raw.bytes->clear();
                },
                {"do not fit the model", "'" + kUp + ".weight' is [0, 64], expected [96, 64]"});
}

TEST_CASE("a file that changes between plan and run stops the run") {
  const EditedFolder folder(kDense, [](Value&, RawTensors&) {});
  const TestHost host;
  const auto checkpoint = Checkpoint::open(folder.path());
  host.host->plan(checkpoint, to_nf4());
  const auto file = folder.path() / "model.safetensors";
  fs::last_write_time(file, fs::last_write_time(file) + std::chrono::hours(1));
  const auto error = thrown_by([&] { host.host->load(checkpoint, to_nf4()); });
  CHECK(error.kind() == ErrorKind::model);
  CHECK(contains(error.what(), "model.safetensors: "));
  CHECK(contains(error.what(), "the file was changed after it was opened"));
  CHECK(contains(error.what(), "start again when nothing writes to it"));
}

TEST_CASE("a bias that the config promises and the file lacks is named and counted") {
  for (const auto& golden : {kDense, kGptq})
    check_refused(
        golden, [](Value& config, RawTensors&) { config.set("mlp_bias", true); },
        {"the checkpoint lacks 6 tensor(s) that the model needs: ", "'" + kUp + ".bias'"});
}

TEST_CASE("a config without architectures is read by its model_type") {
  for (const bool empty : {true, false})
    CHECK(refusal(kDense, [&](Value& config, RawTensors&) {
            config.erase("architectures");
            if (empty) config.set("architectures", Value::Array{});
          }) == "");
}

TEST_CASE("a config that names neither architecture nor type is quantized from its tensors") {
  const EditedFolder folder(kDense, [](Value& config, RawTensors&) {
    config.set("architectures", Value::Array{});
    config.erase("model_type");
  });
  const TestHost host;
  const auto loaded = host.host->load(folder.path(), to_nf4());
  CHECK(loaded.plan.count(Action::quantize) > 0);
  REQUIRE_FALSE(loaded.plan.notes.empty());
  CHECK(contains(loaded.plan.notes.back(), "graft does not have the architecture"));
  CHECK_THROWS_AS(host.host->load(folder.path()), Error);
}

TEST_CASE("a NaN or infinity in a weight stops quantizing, named, before anything is written") {
  struct Bad {
    std::uint16_t half;
    const char* method;
    const char* says;
  };
  for (const auto& bad : {Bad{0x7E00, "load_in_4bit", "NaN or infinity"},
                          Bad{0x7C00, "load_in_4bit", "NaN or infinity"},
                          Bad{0x7E00, "load_in_8bit", "values that float16 does not have"},
                          Bad{0xFC00, "load_in_8bit", "values that float16 does not have"}}) {
    LoadOptions options;
    options.quantization_config.set("quant_method", "bitsandbytes");
    options.quantization_config.set(bad.method, true);
    check_refused(
        kDense,
        [&](Value&, RawTensors& tensors) {
          tensors.at(kUp + ".weight").data<std::uint16_t>()[77] = bad.half;
        },
        {kUp, bad.says}, options);
  }
}

TEST_CASE("experts in one piece that lie transposed are refused with both shapes") {
  for (const auto& golden : {kGptOss, std::string("arch/llama4_text")})
    for (const bool quantize : {false, true})
      check_refused(
          golden,
          [](Value&, RawTensors& tensors) {
            for (auto& [name, raw] : tensors)
              if (name.ends_with("experts.gate_up_proj")) std::swap(raw.shape[1], raw.shape[2]);
          },
          {"do not fit the model", "gate_up_proj", "expected"},
          quantize ? to_nf4() : LoadOptions{});
}

TEST_CASE("a config with no experts or a negative number of them is refused by the field") {
  const std::map<std::string, std::string> fields{{"arch/mixtral", "num_local_experts"},
                                                  {kGptOss, "num_local_experts"},
                                                  {"arch/qwen3_moe", "num_experts"},
                                                  {"arch/deepseek_v3", "n_routed_experts"}};
  for (const auto& [golden, field] : fields)
    for (const std::int64_t count : {0, -1}) {
      CAPTURE(golden);
      check_refused(
          golden, [&](Value& config, RawTensors&) { config.set(field, count); },
          {"config.json", "'" + field + "'", std::to_string(count)});
    }
}

TEST_CASE("fewer experts in the file than in the config are named") {
  check_refused(
      "arch/mixtral",
      [](Value& config, RawTensors&) { config.set("num_local_experts", std::int64_t{9}); },
      {"the checkpoint lacks", "experts"});
}

TEST_CASE("the locale of the application changes no byte") {
  struct Commas : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const auto dense = saved(kDense, to_nf4()), gptq = saved(kGptq, {});
  const std::locale before = std::locale::global(std::locale(std::locale::classic(), new Commas));
  const TemporaryFolder made;
  const bool c_too = use_comma_of_c(made.path());
  if (!c_too) MESSAGE("this system has no C locale with a decimal comma: C++ streams alone");
  const auto dense_again = saved(kDense, to_nf4()), gptq_again = saved(kGptq, {});
  const std::string shapes = refusal(kDense, [](Value& config, RawTensors&) {
    config.set("vocab_size", std::int64_t{12345});
  });
  std::setlocale(LC_ALL, "C");
  std::locale::global(before);
  CHECK(dense == dense_again);
  CHECK(gptq == gptq_again);
  CHECK(contains(shapes, "12345"));
}

TEST_CASE("a hundred loads at once in one process do not disturb each other") {
  const TestHost host;
  const std::vector<std::string> goldens{kGptq, "vectors/tiny_llama_awq4_gemm",
                                         "vectors/tiny_llama_bnb_nf4_dq", kDense};
  std::vector<std::string> expected;
  const auto digest = [&](const std::string& golden) {
    std::string out;
    const auto loaded = host.host->load(test::golden(golden));
    for (const auto& item : loaded.model->named_parameters())
      out.append(static_cast<const char*>(item.value().const_data_ptr()), item.value().nbytes());
    return out;
  };
  for (const auto& golden : goldens) expected.push_back(digest(golden));
  std::atomic<int> equal{0};
  std::vector<std::thread> threads;
  constexpr int kThreads = 20, kLoads = 5;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < kLoads; ++i) {
        const auto which = static_cast<std::size_t>(t + i) % goldens.size();
        equal += digest(goldens[which]) == expected[which];
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(equal == kThreads * kLoads);
}

TEST_CASE("a child that is forked while the pool is idle can load and quantize") {
  const auto parent = saved(kDense, to_nf4());
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    try {
      ::_exit(saved(kDense, to_nf4()) == parent ? 0 : 1);
    } catch (...) {
      ::_exit(2);
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("a child that is forked while the pool is busy has a pool of its own") {
  struct Stuck {
    std::thread::id caller;
    std::atomic<bool>*reached, *released;
  };
  const int threads_before = at::get_num_threads();
  at::set_num_threads(2);
  std::atomic<bool> reached{false}, released{false};
  std::vector<int> delivered(8);
  void* job = pool().open_staged(sizeof(Stuck), 8, 1);
  REQUIRE(job);
  new (pool().shared_of(job)) Stuck{std::this_thread::get_id(), &reached, &released};
  // The helper stays in its chunk, so the child would wait for it for ever.
  pool().run_staged(
      job,
      [](const void* block, std::int64_t, void*) noexcept {
        const auto& stuck = *static_cast<const Stuck*>(block);
        const bool mine = std::this_thread::get_id() == stuck.caller;
        if (!mine) *stuck.reached = true;
        while (!(mine ? stuck.reached : stuck.released)->load()) std::this_thread::yield();
      },
      [](void* out, std::int64_t chunk, const void*) noexcept {
        ++(*static_cast<std::vector<int>*>(out))[static_cast<std::size_t>(chunk)];
      },
      &delivered);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    std::atomic<int> ran{0};
    pool().drain();
    for_each_chunk(pool(), 64, [&](std::int64_t) { ++ran; });
    ::_exit(ran == 64 ? 0 : 1);
  }
  released = true;
  pool().drain();
  at::set_num_threads(threads_before);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(delivered == std::vector<int>(8, 1));
}
