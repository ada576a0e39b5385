#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <optional>

#include "cli/program.h"
#include "graft/error.h"
#include "graft/plugins.h"

namespace {

using namespace graft;
using namespace graft::cli;

void add_globals(CLI::App& app, Globals& globals) {
  app.add_flag("--json", globals.json, "One JSON document on stdout, nothing else there");
  app.add_option("--threads", globals.threads, "Threads to compute with")->check(at_least_one());
  app.add_option("--act", globals.activations,
                 "What quantized layers compute with: auto (float32 stays float32, 16-bit "
                 "activations become 15-bit integers), a15, a8 (fastest, least exact), bf16, f32")
      ->check(CLI::IsMember({"auto", "a15", "a8", "bf16", "f32"}))
      ->capture_default_str();
  auto* device = app.add_option("--device", globals.device, "Where models run: cpu, cuda or cuda:N")
                     ->capture_default_str();
  auto* map = app.add_option("--device-map", globals.device_map,
                             "Where the parts of a model run: auto, sequential, or a JSON object "
                             "of module paths and devices, as it is or in a file")
                  ->excludes(device);
  app.add_option("--max-memory", globals.max_memory,
                 "What --device-map auto may use: a JSON object of devices and sizes, such as "
                 R"({"0": "20GiB", "cpu": "60GiB"})")
      ->needs(map);
  app.add_flag("--deterministic", globals.deterministic,
               "LibTorch sums in the same order each time, on a GPU too, or says that it cannot");
  // One value each time, or a verb behind it would be another.
  app.add_option("--plugin", globals.plugin_files, "Load this plugin file too")
      ->allow_extra_args(false);
  app.add_option("--plugin-path", globals.plugin_paths, "Search this folder for plugins too")
      ->allow_extra_args(false);
  app.add_option("--registry", globals.registry_files, "Rules that win over the installed ones")
      ->allow_extra_args(false);
  app.add_flag("--strict", globals.strict, "What is unknown, unmatched or unexpected is an error");
  app.add_option("--trust", globals.trust,
                 "Who wins when a model's settings contradict its tensors: label or data")
      ->check(CLI::IsMember({"label", "data"}));
  app.add_flag("--allow-nonfinite", globals.allow_nonfinite, "Load scales with NaN or infinity");
  app.add_flag("--allow-insecure-plugins", globals.allow_insecure,
               "Load plugins that others may write to");
  app.add_option("--log", globals.log_file, "Append messages to this file");
  app.add_flag("-q,--quiet", globals.quiet, "Errors only");
  app.add_flag("-v,--verbose", globals.verbose, "More messages; twice for all");
}

int report(Program& program, const Error& error) {
  program.terminal.finish_line();
  if (!program.speechless) std::cerr << "graft: " << error.what() << std::endl;
  return exit_code(error.kind());
}

/// The first word that looks like an option and is none of the verb's.
std::optional<Error> unknown_option(const CLI::App& app, const std::vector<std::string>& words,
                                    const std::string& help) {
  std::vector<std::string> known;
  const auto learn = [&](const CLI::App& level) {
    for (const auto* option : level.get_options())
      for (const auto& name : option->get_lnames()) known.push_back("--" + name);
  };
  for (const auto* level = &app; level;) {
    learn(*level);
    for (const auto* group :
         level->get_subcommands([](const CLI::App* below) { return below->get_name().empty(); }))
      learn(*group);  // of options that exclude each other
    const auto below = level->get_subcommands();
    level = below.empty() ? nullptr : below.front();
  }
  for (const auto& word : words) {
    const auto name = word.substr(0, word.find('='));
    if (!name.starts_with("--") || std::find(known.begin(), known.end(), name) != known.end())
      continue;
    const auto near = nearest_names(name, known);
    return Error(ErrorKind::usage, "unknown option " + quote(name))
        .hint((near.empty() ? "" : "did you mean " + near + "? ") + help);
  }
  return std::nullopt;
}

/// What is wrong with the command line, with the way out.
Error mistake(const CLI::App& app, const CLI::ParseError& error,
              const std::vector<std::string>& not_globals) {
  std::vector<std::string> verbs;
  for (const auto* verb : app.get_subcommands({})) verbs.push_back(verb->get_name());
  const auto parsed = app.get_subcommands();
  const std::string help = "graft " + (parsed.empty() ? "" : parsed[0]->get_name() + " ");
  const auto word = std::find_if(not_globals.begin(), not_globals.end(),
                                 [](const std::string& text) { return !text.starts_with('-'); });
  if (parsed.empty() && word != not_globals.end()) {
    const auto near = nearest_names(*word, verbs);
    return Error(ErrorKind::usage, "unknown verb " + quote(*word))
        .hint((near.empty() ? "" : "did you mean " + near + "? ") +
              "`graft --help` lists them all");
  }
  // What is missing may be there under a misspelt name.
  const auto kind = static_cast<CLI::ExitCodes>(error.get_exit_code());
  if (kind == CLI::ExitCodes::ExtrasError || kind == CLI::ExitCodes::RequiredError)
    if (auto unknown = unknown_option(app, not_globals, "`" + help + "--help` lists them all"))
      return *unknown;
  return Error(ErrorKind::usage,
               parsed.empty() && not_globals.empty() ? "a verb is missing" : error.what())
      .hint("`" + help + "--help` shows how it is called");
}

int run(int argc, char** argv) {
  Program program;
  std::vector<std::string> not_globals;
  try {
    // The plugins named here declare options of the real command line.
    CLI::App first;
    first.set_help_flag("");
    first.allow_extras();
    add_globals(first, program.globals);
    try {
      first.parse(argc, argv);
    } catch (const CLI::ParseError&) {
      // The second pass says what is wrong.
    }
    not_globals = first.remaining();
    program.configure();
  } catch (const Error& error) {
    return report(program, error);
  }
  CLI::App app("graft converts models into quantized ones and runs them", "graft");
  app.set_version_flag("--version", "graft " GRAFT_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  add_globals(app, program.globals);
  // Finding plugins takes a moment, so only the verbs that show their options pay for it.
  const auto asked_for = [&](std::string_view verb) {
    return std::any_of(argv + 1, argv + argc, [&](const char* word) { return word == verb; });
  };
  try {
    add_bench(app, program, asked_for("bench") && asked_for("model"));
    add_compare(app, program, asked_for("compare"));
    add_convert(app, program, asked_for("convert"));
    add_dequantize(app, program);
    add_doctor(app, program);
    add_embed(app, program, asked_for("embed"));
    add_eval(app, program, asked_for("eval"));
    add_forward(app, program, asked_for("forward"));
    add_generate(app, program, asked_for("generate"));
    add_import(app, program);
    add_inspect(app, program);
    add_plan(app, program, asked_for("plan"));
    add_plugins(app, program);
    add_quantize(app, program, asked_for("quantize"));
    add_registry(app, program);
    add_resume(app, program);
    add_verify(app, program);
    for (auto* verb : app.get_subcommands({})) verb->fallthrough();
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    return report(program, mistake(app, error, not_globals));
  } catch (const Error& error) {
    return report(program, error);
  }
}

/// Ends the process. LibTorch's static destructors take its operators back one by one, which takes
/// as long as loading it did, so they are left out; a sanitizer that looks for leaks needs them.
[[noreturn]] void leave(int code) {
  shutdown();
  std::cout.flush();
  if ((std::fflush(stdout) != 0 || std::ferror(stdout) || !std::cout) && code == 0) {
    std::cerr << "graft: standard output could not be written whole; make room where it goes, and "
                 "run again"
              << std::endl;
    code = 4;
  }
#ifdef __SANITIZE_ADDRESS__
  std::exit(code);
#else
  std::_Exit(code);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  watch_interrupts();
  int code = 70;
  try {
    code = run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::cerr << "graft: out of memory; use a machine with more, or fewer --threads" << std::endl;
    code = 4;
  } catch (const c10::Error& error) {
    std::cerr << "graft: LibTorch: " << error.what_without_backtrace() << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "graft: " << error.what() << std::endl;
  }
  leave(code);
}
