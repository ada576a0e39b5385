#include <ATen/ATen.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>

#include "cli/conformance/conformance.h"
#include "cli/program.h"

namespace graft::cli {
namespace {

constexpr char kEnd = '\0';  ///< of the child's answer; without it the plugin ended the process

struct Arguments {
  std::string file, rule;
  unsigned seconds = 120;
};

/// What a check runs with.
struct Setting {
  std::filesystem::path file;
  bool allow_insecure;
  c10::Device device;
  unsigned seconds;
};

/// What `body` throws, its first line; nothing when it does not.
std::string words_of(const std::function<void()>& body) {
  try {
    body();
    return {};
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.empty() ? "an exception without a message" : what.substr(0, what.find('\n'));
  } catch (...) {
    return "it threw something that is no std::exception";
  }
}

/// Loads the plugin here and runs the check; throws how it is broken.
void run(const Check& check, const Setting& setting) {
  start_own_threads();
  Tried tried;
  tried.before = ProcessState::now();
  tried.operators_before = operators_now();
  PluginSearch search;
  search.files = {setting.file};
  search.use_default_path = false;
  search.allow_insecure = setting.allow_insecure;
  const Plugins found = Plugins::find(search);
  if (found.libraries().empty()) broken(found.verdicts().at(0).reason);
  tried.library = found.libraries()[0];
  tried.subjects = subjects_of(*tried.library);
  tried.device = setting.device;
  check.run(tried);
}

/// What words_of() gives in a process of its own, or how that ended.
std::string run_apart(const std::function<void()>& body, unsigned seconds) {
  int ends[2];
  if (::pipe(ends) != 0)
    throw Error(ErrorKind::resource, "no pipe: " + std::string(strerror(errno)));
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) throw Error(ErrorKind::resource, "no process: " + std::string(strerror(errno)));
  if (child == 0) {
    ::close(ends[0]);
    ::dup2(STDERR_FILENO, STDOUT_FILENO);  // --json is alone there, whatever a plugin prints
    ::signal(SIGALRM, SIG_DFL);
    ::alarm(seconds);
    const std::string failure = words_of(body);
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
    return "it took more than " + std::to_string(seconds) + " seconds";
  if (WIFSIGNALED(status))
    return "it ended the process: " + std::string(strsignal(WTERMSIG(status)));
  if (failure.empty() || failure.back() != kEnd)
    return "it ended the process with exit code " + std::to_string(WEXITSTATUS(status));
  failure.pop_back();
  return failure;
}

/// Throws Error(usage) where there is no such device. Asked in a child: CUDA cannot be used on both
/// sides of a fork.
void require_device(const c10::Device& device, unsigned seconds) {
  if (!run_apart([&] { at::empty({1}, at::device(device)); }, seconds).empty())
    throw Error(ErrorKind::usage, "LibTorch cannot use this device")
        .found(quote(device.str()))
        .hint("graft doctor says why");
}

std::vector<Check> rules(const std::string& beginning) {
  std::vector<Check> out;
  for (const auto& part : {border_checks(), storage_checks(), forward_checks(), process_checks()})
    for (const auto& check : part)
      if (std::string_view(check.sentence).starts_with(beginning)) out.push_back(check);
  if (out.empty()) throw Error(ErrorKind::usage, "no rule starts with " + quote(beginning));
  return out;
}

void test(Program& program, const Arguments& given) {
  read_stamp(given.file);  // the clearest error for what is no plugin
  const auto devices = program.device().devices();
  if (devices.size() != 1)
    throw Error(ErrorKind::usage, "modules are moved to one device").hint("give it with --device");
  const Setting setting{std::filesystem::absolute(given.file), program.globals.allow_insecure,
                        devices[0], given.seconds};
  require_device(setting.device, setting.seconds);
  const std::string_view first = border_checks().front().sentence;
  std::size_t broken = 0, tried = 0;
  Value::Array rows;
  for (const auto& rule : rules(given.rule)) {
    const std::string failure = run_apart([&] { run(rule, setting); }, setting.seconds);
    ++tried;
    broken += !failure.empty();
    if (program.globals.json) {
      Value row;
      row.set("rule", rule.sentence);
      row.set("kept", failure.empty());
      if (!failure.empty()) row.set("failure", failure);
      rows.push_back(std::move(row));
    } else {
      std::printf("%-6s  %s\n", failure.empty() ? "kept" : "BROKEN", rule.sentence);
      if (!failure.empty()) std::printf("        %s\n", failure.c_str());
    }
    if (!failure.empty() && rule.sentence == first) break;  // all others would say the same
  }
  if (program.globals.json) program.print_json(rows);
  if (broken)
    throw Error(ErrorKind::plugin,
                std::to_string(broken) + " of " + std::to_string(tried) + " rules are broken")
        .at(quote(given.file, 1000));
}

}  // namespace

void add_plugins_test(CLI::App& plugins, Program& program) {
  auto* verb = plugins.add_subcommand(
      "test",
      "Whether a plugin keeps to the rules, on --device too, each checked in a process of its own");
  auto given = std::make_shared<Arguments>();
  verb->add_option("FILE", given->file, "A shared library")->required();
  verb->add_option("--rule", given->rule, "Only rules that start with this text");
  verb->add_option("--seconds", given->seconds, "A rule may take at most")
      ->capture_default_str()
      ->check(at_least_one());
  verb->callback([given, &program] { test(program, *given); });
}

}  // namespace graft::cli
