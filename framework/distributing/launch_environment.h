#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace graft {

/// This process among those that were started for one job.
struct LaunchEnvironment {
  int rank = 0;
  int size = 1;
  std::string master_addr;
  std::uint16_t master_port = 0;
  /// Whether torchrun itself listens at master_port, else rank 0 has to.
  bool agent_store = false;
  /// How often torchrun has started the job again.
  std::string restart = "0";
};

/// What the variables that join_ranks() lists say; nothing when the process works alone. Throws
/// Error(usage) naming the variable.
std::optional<LaunchEnvironment> launch_environment();

}  // namespace graft
