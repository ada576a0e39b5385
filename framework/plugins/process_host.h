#pragma once

#include "graft/context.h"
#include "graft/plugin_abi.h"

namespace graft {

/// What every plugin's init gets. Lives as long as the process.
const graft_host& process_host();

/// While it lives, what plugins say on this thread goes to `context`, which outlives it.
class ListeningToPlugins {
 public:
  explicit ListeningToPlugins(const Context& context);
  ~ListeningToPlugins();
  ListeningToPlugins(const ListeningToPlugins&) = delete;
  ListeningToPlugins& operator=(const ListeningToPlugins&) = delete;

 private:
  const Context* before_;
};

}  // namespace graft
