#include "cli/program.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "graft/activations.h"
#include "graft/tensors.h"
#include "text/utf8.h"

namespace graft::cli {
namespace fs = std::filesystem;
namespace {

/// JSON is UTF-8 and names of files need not be: a byte that is none is written as Python's
/// os.fsdecode reads it, so that os.fsencode gives it back.
std::string with_bytes_escaped(std::string_view json) {
  std::string out;
  for (;;) {
    const std::size_t valid = valid_utf8_prefix(json);
    out += json.substr(0, valid);
    if (valid == json.size()) return out;
    char escape[8];
    std::snprintf(escape, sizeof(escape), "\\udc%02x", static_cast<unsigned char>(json[valid]));
    out += escape;
    json.remove_prefix(valid + 1);
  }
}

}  // namespace

void Program::configure() {
  terminal.configure(globals.quiet, globals.verbose, globals.log_file);
  constexpr int kMostThreads = 1024;
  if (globals.threads > kMostThreads)
    throw Error(ErrorKind::usage, "so many threads are of no use")
        .at("--threads")
        .expected("at most " + std::to_string(kMostThreads))
        .found(std::to_string(globals.threads));
  if (globals.threads > 0) at::set_num_threads(globals.threads);
  device();  // what is no device is refused by verbs that run nothing, too
  set_activation_mode(parse_activation_mode(globals.activations));
  if (globals.deterministic) {
    // cuBLAS reads it when it is first used (its documentation, "Results reproducibility").
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicCuDNN(true);
  }
}

Host& Program::host() {
  if (!host_) {
    HostOptions options;
    for (const auto& file : globals.plugin_files) options.plugin_files.emplace_back(file);
    for (const auto& path : globals.plugin_paths) options.plugin_directories.emplace_back(path);
    for (const auto& file : globals.registry_files) options.registry_files.emplace_back(file);
    options.allow_insecure_plugins = globals.allow_insecure;
    options.strict = globals.strict;
    options.trust = globals.trust == "label"  ? Trust::label
                    : globals.trust == "data" ? Trust::data
                                              : Trust::neither;
    options.allow_nonfinite = globals.allow_nonfinite;
    options.context = context();
    host_.emplace(std::move(options));
    for (const auto& verdict : host_->plugins().verdicts())
      if (!verdict.loaded && verdict.named && globals.strict)
        throw Error(ErrorKind::plugin, verdict.reason).at(quote(verdict.file.string(), 1000));
      else if (!verdict.loaded && verdict.file != inspected)
        terminal.say(verdict.named ? LogLevel::error : LogLevel::warning, "plugins",
                     verdict.file.string() + ": " + verdict.reason);
  }
  return *host_;
}

/// JSON, as it is or in a file of that name; else the text itself.
static Value json_or_word(const std::string& text, const char* option) {
  std::error_code error;
  const bool is_file = fs::is_regular_file(text, error);
  if (!is_file && !text.starts_with('{')) return text;
  try {
    return parse_json(is_file ? read_text_file(text) : text);
  } catch (Error& failed) {
    if (is_file) throw failed.at(quote(text));
    throw Error(ErrorKind::usage, failed.what()).at(option);
  }
}

DeviceMap Program::device() const {
  if (!globals.device_map.empty()) {
    const Value most = globals.max_memory.empty()
                           ? Value()
                           : json_or_word(globals.max_memory, "--max-memory");
    return DeviceMap::from_value(json_or_word(globals.device_map, "--device-map"), most);
  }
  try {
    return c10::Device(globals.device);
  } catch (const c10::Error&) {
    throw Error(ErrorKind::usage, "unknown --device")
        .expected("cpu, cuda or cuda:N")
        .found(quote(globals.device));
  }
}

Context Program::context() {
  Context out;
  out.log = [this](LogLevel level, std::string_view component, std::string_view message) {
    terminal.say(level, component, message);
  };
  out.progress = [this](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    terminal.progress(stage, done, total);
    return !interrupted();
  };
  return out;
}

void Program::print_json(const Value& value) const {
  std::cout << with_bytes_escaped(to_json(value, 2)) << "\n";
}

/// As huggingface_hub finds it.
static fs::path hugging_face_cache() {
  const auto given = [](const char* name) {
    const char* value = std::getenv(name);
    return value ? fs::path(value) : fs::path();
  };
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (auto path = given(name); !path.empty()) return path;
  if (auto home = given("HF_HOME"); !home.empty()) return home / "hub";
  auto cache = given("XDG_CACHE_HOME");
  if (cache.empty()) cache = given("HOME") / ".cache";
  return cache / "huggingface/hub";
}

fs::path find_model(const std::string& argument) {
  std::error_code error;
  if (fs::is_directory(argument, error)) return argument;
  if (fs::is_regular_file(argument, error))
    throw Error(ErrorKind::usage, "a model is a folder, and this is a file")
        .at(quote(argument))
        .hint(fs::path(argument).extension() == ".gguf"
                  ? "`graft import FILE OUT` makes a folder of it"
                  : "give the folder that it lies in");
  Error missing(ErrorKind::usage, "no such model folder");
  missing.at(quote(argument));
  const auto slash = argument.find('/');
  const bool is_name = slash != std::string::npos && slash > 0 &&
                       argument.find('/', slash + 1) == std::string::npos &&
                       argument.front() != '.';
  if (!is_name)
    throw missing.hint(
        "give a folder with config.json, or an org/name of the local Hugging Face cache");
  const fs::path cache = hugging_face_cache();
  std::string name = "models--" + argument;
  name.replace(name.find('/'), 1, "--");
  std::ifstream ref(cache / name / "refs" / "main");
  std::string commit;
  if (ref >> commit;
      fs::is_directory(cache / name / "snapshots" / commit, error) && !commit.empty())
    return cache / name / "snapshots" / commit;
  throw missing.hint("the Hugging Face cache " + quote(cache.string()) +
                     " does not hold it either: run `hf download " + argument + "` first");
}

std::optional<at::ScalarType> parse_dtype(const std::string& word) {
  if (word.empty()) return std::nullopt;
  try {
    return float_dtype_from_word(word, ErrorKind::usage);
  } catch (Error& error) {
    throw error.at("--dtype");
  }
}

CLI::Validator at_least_one() {
  return CLI::Validator(
      [](std::string& text) {
        std::int64_t number = 0;
        const auto* end = text.data() + text.size();
        const auto [at, failed] = std::from_chars(text.data(), end, number);
        const bool good = failed == std::errc{} && at == end && number >= 1;
        return good ? std::string() : "expected an integer from 1 on, found " + quote(text);
      },
      "INT from 1");
}

CLI::Validator at_least_zero() {
  return CLI::Validator(
      [](std::string& text) {
        double number = -1;
        const auto* end = text.data() + text.size();
        const auto [at, failed] = std::from_chars(text.data(), end, number);
        const bool good = failed == std::errc{} && at == end && number >= 0;
        return good ? std::string() : "expected a number from 0 on, found " + quote(text);
      },
      "NUMBER from 0");
}

std::string with_commas(std::uint64_t number) {
  std::string text = std::to_string(number);
  for (std::size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

std::string megabytes(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), bytes < 10'000'000 ? "%.2f MB" : "%.0f MB",
                static_cast<double>(bytes) / 1e6);
  return text;
}

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), value < 10 ? "%.2f s" : "%.0f s", value);
  return text;
}

void require_writable(const fs::path& output, const std::vector<fs::path>& inputs,
                      const std::vector<fs::path>& folders) {
  std::error_code error;
  const auto refuse = [&](const char* why, const char* hint) {
    throw Error(ErrorKind::usage, why).at(quote(output.string())).hint(hint);
  };
  if (output.filename().empty()) refuse("the output has no file name", "give the name of a file");
  if (fs::exists(output, error) && !fs::is_regular_file(output, error))
    refuse("the output is there already and no file", "give another name");
  const auto folder = fs::absolute(output, error).parent_path();
  if (!fs::is_directory(folder, error))
    throw Error(ErrorKind::resource, "the folder of the output does not exist")
        .at(quote(folder.string()))
        .hint("create it first");
  for (const auto& input : inputs)
    if (fs::equivalent(output, input, error))
      refuse("the output would replace an input", "give another name");
  for (const auto& model : folders)
    if (fs::equivalent(folder, model, error))
      refuse("the output lies in the folder of a model", "give a name outside of it");
}

std::string read_text_file(const fs::path& file) {
  std::error_code error;
  if (fs::is_directory(file, error))
    throw Error(ErrorKind::usage, "this is a folder, and a text file is needed")
        .at(quote(file.string()));
  std::ifstream in(file, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  if (!in) throw Error(ErrorKind::usage, "the file cannot be read").at(quote(file.string()));
  try {
    require_text(text.view());
  } catch (Error& failed) {
    throw failed.at(quote(file.string()));
  }
  return text.str();
}

}  // namespace graft::cli
