#include "distributing/launch_environment.h"

#include <charconv>
#include <cstdlib>
#include <limits>

#include "graft/error.h"

namespace graft {
namespace {

constexpr const char* kHint =
    "start the processes with torchrun, or set the variables for each of them; a process that "
    "works alone needs none, or RANK=0 and WORLD_SIZE=1";

struct Launcher {
  const char* rank;
  const char* size;
};

/// Those whose variables may stand beside each other, the innermost one first.
constexpr Launcher kLaunchers[] = {{"RANK", "WORLD_SIZE"},
                                   {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                   {"SLURM_PROCID", "SLURM_NTASKS"}};

bool is_set(const char* variable) { return std::getenv(variable) != nullptr; }

/// The launcher that started this process; null when none did.
const Launcher* launcher() {
  for (const Launcher& each : kLaunchers) {
    // The shell of a Slurm allocation has SLURM_NTASKS, but is none of the tasks.
    if (is_set(each.rank) || (is_set(each.size) && std::string_view(each.size) != "SLURM_NTASKS"))
      return &each;
  }
  return nullptr;
}

/// The variable's value; `expected` and `because` say what it is for and why it is needed.
std::string value_of(const char* variable, const std::string& expected,
                     const std::string& because) {
  const char* const value = std::getenv(variable);
  if (!value || !*value)
    throw Error(ErrorKind::usage, std::string("the environment variable is ") +
                                      (value ? "empty" : "not set") + ", though " + because)
        .at(variable)
        .expected(expected)
        .hint(kHint);
  return value;
}

int number(const char* variable, const std::string& text, int least, int most,
           const std::string& expected) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most)
    throw Error(ErrorKind::usage, "the environment variable has a wrong value")
        .at(variable)
        .expected(expected)
        .found(quote(text))
        .hint(kHint);
  return value;
}

}  // namespace

std::optional<LaunchEnvironment> launch_environment() {
  const Launcher* const by = launcher();
  if (!by) return std::nullopt;
  const std::string rank = value_of(by->rank, "the rank of this process",
                                    std::string(by->size) + " is set");
  const std::string size = value_of(by->size, "the number of processes",
                                    std::string(by->rank) + " is set");
  LaunchEnvironment out;
  out.size = number(by->size, size, 1, std::numeric_limits<int>::max(),
                    "the number of processes, 1 or more");
  out.rank = number(by->rank, rank, 0, out.size - 1,
                    "the rank of this process, from 0 to " + std::to_string(out.size - 1) + " as " +
                        by->size + " is " + std::to_string(out.size));
  if (out.size == 1) return std::nullopt;

  const std::string because = std::string(by->size) + " is " + std::to_string(out.size);
  out.master_addr = value_of("MASTER_ADDR", "the host of rank 0", because);
  const std::string port =
      value_of("MASTER_PORT", "a port that is free on the host of rank 0", because);
  out.master_port = static_cast<std::uint16_t>(
      number("MASTER_PORT", port, 1, 65535, "a port, from 1 to 65535"));
  const char* const agent = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  out.agent_store = agent && std::string_view(agent) == "True";
  if (const char* const restart = std::getenv("TORCHELASTIC_RESTART_COUNT")) out.restart = restart;
  return out;
}

}  // namespace graft
