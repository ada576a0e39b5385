#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/terminal.h"
#include "graft/host.h"

namespace graft::cli {

/// What every verb understands.
struct Globals {
  bool json = false, quiet = false, strict = false, allow_insecure = false;
  int verbose = 0, threads = 0;
  bool allow_nonfinite = false, deterministic = false;
  std::string device = "cpu", device_map, max_memory, log_file, trust, activations = "auto";
  std::vector<std::string> plugin_files, plugin_paths, registry_files;
};

/// Shared by the verbs: parsed globals, the terminal, and the host once somebody needs it.
class Program {
 public:
  Globals globals;
  Terminal terminal;
  /// Another process tells the user why this one ends.
  bool speechless = false;
  /// A plugin file whose verdict the verb itself reports.
  std::filesystem::path inspected;

  /// Carries the globals out: terminal, threads, activations. Throws Error(usage).
  void configure();
  /// Made on first use, from the globals.
  Host& host();
  /// From --device, or --device-map and --max-memory.
  DeviceMap device() const;
  /// Callbacks that show messages and progress and stop on Ctrl-C.
  Context context();
  /// Prints a result as the one JSON document on stdout.
  void print_json(const Value& value) const;

 private:
  std::optional<Host> host_;
};

/// What `graft quantize` and `graft plan` make of the options that plugins declare.
class MethodOptions {
 public:
  /// Adds --method and every option of every method of `host`, grouped by method in the help.
  void add_to(CLI::App& verb, const Host& host);
  /// Adds the options that say how to run a quantized model, of every method.
  void add_loading_to(CLI::App& verb, const Host& host);
  /// Whether the flag was given with this word alone, which a verb makes something of itself: it
  /// counts as not given then.
  bool take(const std::string& flag, const std::string& word);
  /// The quantization_config that was asked for, null when no --method was given. Throws
  /// Error(usage) for an option of another method.
  Value settings() const;
  /// The fields that add_loading_to() got, null when none.
  Value loading_settings() const;

 private:
  void collect(const Host& host);
  std::string method_;
  std::map<std::string, std::vector<OptionSpec>> methods_;
  std::map<std::string, std::vector<std::string>> given_;  ///< by flag; only those that occur count
};

/// MODEL and --dtype of a verb that runs a model, and what plugins let it say about running.
class ModelToRun {
 public:
  void add_to(CLI::App& verb, Program& program, bool with_methods);
  std::filesystem::path folder() const;
  LoadedModel load(Program& program) const;

 private:
  std::string model_, dtype_;
  MethodOptions method_;
};

/// A folder as given, or an org/name from the local Hugging Face cache. Throws Error(usage) saying
/// how to get it.
std::filesystem::path find_model(const std::string& argument);

/// "--dtype" of a verb; nothing when it is empty.
std::optional<at::ScalarType> parse_dtype(const std::string& word);

/// Accepts integers from 1 on.
CLI::Validator at_least_one();
/// Any number.
CLI::Validator at_least_zero();

/// "1,234"
std::string with_commas(std::uint64_t number);
/// "257 MB"
std::string megabytes(std::uint64_t bytes);

/// "12.3 s"
std::string seconds(double value);

/// Whole content; Error(usage) when it cannot be read.
std::string read_text_file(const std::filesystem::path& file);

/// Throws Error(usage) when a file written at `output` would replace something that is no file, one
/// of the files `inputs`, or a part of a model in one of `folders`.
void require_writable(const std::filesystem::path& output,
                      const std::vector<std::filesystem::path>& inputs,
                      const std::vector<std::filesystem::path>& folders);

// One function a verb, in the file of that name: declares its arguments and what runs.
void add_bench(CLI::App& app, Program& program, bool with_methods);
void add_bench_kernels(CLI::App& bench, Program& program);
void add_bench_model(CLI::App& bench, Program& program, bool with_methods);
void add_compare(CLI::App& app, Program& program, bool with_methods);
void add_convert(CLI::App& app, Program& program, bool with_formats);
void add_dequantize(CLI::App& app, Program& program);
void add_doctor(CLI::App& app, Program& program);
void add_embed(CLI::App& app, Program& program, bool with_methods);
void add_eval(CLI::App& app, Program& program, bool with_methods);
void add_forward(CLI::App& app, Program& program, bool with_methods);
void add_generate(CLI::App& app, Program& program, bool with_methods);
void add_import(CLI::App& app, Program& program);
void add_inspect(CLI::App& app, Program& program);
void add_plan(CLI::App& app, Program& program, bool with_methods);
void add_plugins(CLI::App& app, Program& program);
void add_plugins_test(CLI::App& plugins, Program& program);
void add_quantize(CLI::App& app, Program& program, bool with_methods);
void add_registry(CLI::App& app, Program& program);
void add_resume(CLI::App& app, Program& program);
void add_verify(CLI::App& app, Program& program);

}  // namespace graft::cli
