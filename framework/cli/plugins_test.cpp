#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "cli/conformance/conformance.h"
#include "cli/program.h"

namespace graft::cli {
namespace {

constexpr unsigned kMostSeconds = 120;
constexpr char kEnd = '\0';  ///< of the child's answer; without it the plugin ended the process

/// Runs in the child: loads the plugin there and says how the check is broken, or nothing.
std::string failure_of(const Check& check, const std::filesystem::path& file, bool allow_insecure) {
  try {
    start_own_threads();
    Tried tried;
    tried.before = ProcessState::now();
    tried.operators_before = operators_now();
    PluginSearch search;
    search.files = {file};
    search.use_default_path = false;
    search.allow_insecure = allow_insecure;
    const Plugins found = Plugins::find(search);
    if (found.libraries().empty()) return "refused: " + found.verdicts().at(0).reason;
    tried.library = found.libraries()[0];
    tried.subjects = subjects_of(*tried.library);
    check.run(tried);
    return {};
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.empty() ? "an exception without a message" : what.substr(0, what.find('\n'));
  } catch (...) {
    return "it threw something that is no std::exception";
  }
}

/// The check in a process of its own.
std::string run_apart(const Check& check, const std::filesystem::path& file, bool allow_insecure) {
  int ends[2];
  if (::pipe(ends) != 0)
    throw Error(ErrorKind::resource, "no pipe: " + std::string(strerror(errno)));
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) throw Error(ErrorKind::resource, "no process: " + std::string(strerror(errno)));
  if (child == 0) {
    ::close(ends[0]);
    ::signal(SIGALRM, SIG_DFL);
    ::alarm(kMostSeconds);
    const std::string failure = failure_of(check, file, allow_insecure);
    const std::string answer = failure + kEnd;
    const bool written =
        ::write(ends[1], answer.data(), answer.size()) == static_cast<ssize_t>(answer.size());
    ::_exit(written ? 0 : 1);
  }
  ::close(ends[1]);
  std::string failure;
  char buffer[4096];
  for (ssize_t count; (count = ::read(ends[0], buffer, sizeof(buffer))) > 0;)
    failure.append(buffer, static_cast<std::size_t>(count));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return "it took more than " + std::to_string(kMostSeconds) + " seconds";
  if (WIFSIGNALED(status))
    return "it ended the process: " + std::string(strsignal(WTERMSIG(status)));
  if (failure.empty() || failure.back() != kEnd)
    return "it ended the process with exit code " + std::to_string(WEXITSTATUS(status));
  failure.pop_back();
  return failure;
}

void test(Program& program, const std::string& file, const std::string& rule) {
  read_stamp(file);  // the clearest error for what is no plugin
  std::vector<Check> checks;
  for (const auto& part : {border_checks(), storage_checks(), forward_checks(), process_checks()})
    for (const auto& check : part)
      if (std::string_view(check.sentence).starts_with(rule)) checks.push_back(check);
  if (checks.empty()) throw Error(ErrorKind::usage, "no rule starts with " + quote(rule));
  std::size_t failed = 0;
  Value::Array rows;
  for (const auto& check : checks) {
    const std::string failure =
        run_apart(check, std::filesystem::absolute(file), program.globals.allow_insecure);
    failed += !failure.empty();
    if (program.globals.json) {
      Value row;
      row.set("check", check.sentence);
      row.set("ok", failure.empty());
      if (!failure.empty()) row.set("failure", failure);
      rows.push_back(std::move(row));
    } else {
      std::printf("%-6s  %s\n", failure.empty() ? "ok" : "BROKEN", check.sentence);
      if (!failure.empty()) std::printf("        %s\n", failure.c_str());
    }
  }
  if (program.globals.json) program.print_json(rows);
  if (failed)
    throw Error(ErrorKind::plugin, std::to_string(failed) + " of " + std::to_string(checks.size()) +
                                       " rules are broken")
        .at(quote(file, 1000));
}

}  // namespace

void add_plugins_test(CLI::App& plugins, Program& program) {
  auto* verb = plugins.add_subcommand(
      "test", "Whether a plugin keeps to the rules, each checked in a process of its own");
  auto file = std::make_shared<std::string>();
  verb->add_option("FILE", *file, "A shared library")->required();
  auto rule = std::make_shared<std::string>();
  verb->add_option("--rule", *rule, "Only rules that start with this text");
  verb->callback([file, rule, &program] { test(program, *file, *rule); });
}

}  // namespace graft::cli
