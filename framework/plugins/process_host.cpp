#include "plugins/process_host.h"

#include <algorithm>
#include <mutex>
#include <string_view>

#include "graft/plugins.h"
#include "graft/activations.h"
#include "graft/pool.h"

namespace graft {
namespace {

using Log = std::function<void(LogLevel, std::string_view, std::string_view)>;

thread_local const Context* listener = nullptr;

struct ProcessLog {
  std::mutex mutex;
  Log log;
};

ProcessLog& process_log() {
  static auto& log = *new ProcessLog;  // plugins may speak until the very end
  return log;
}

/// A listener's own failure is not the plugin's, and nothing may cross the border.
template <class Listen>
auto heard(const Listen& listen, decltype(listen()) otherwise) noexcept {
  try {
    return listen();
  } catch (...) {
    return otherwise;
  }
}

void log(void*, int32_t level, const char* component, const char* message) noexcept {
  const auto clamped = static_cast<LogLevel>(std::clamp(level, 0, 3));
  heard(
      [&] {
        Log process;
        if (!listener) {
          const std::lock_guard lock(process_log().mutex);
          process = process_log().log;
        }
        const Log& to = listener ? listener->log : process;
        if (to) to(clamped, component ? component : "", message ? message : "");
        return true;
      },
      false);
}

int32_t progress(void*, const char* stage, uint64_t done, uint64_t total) noexcept {
  return heard(
      [&] {
        return !listener || !listener->progress ||
                       listener->progress(stage ? stage : "", done, total)
                   ? 1
                   : 0;
      },
      0);
}

const void* query(void*, const char* interface_id) noexcept {
  const std::string_view id = interface_id ? interface_id : "";
  if (id == GRAFT_POOL_INTERFACE) return &pool();
  if (id == GRAFT_ACTIVATIONS_INTERFACE) return &activations();
  return nullptr;
}

constexpr graft_host kHost{sizeof(graft_host), GRAFT_VERSION, nullptr, &log, &progress, &query};

}  // namespace

const graft_host& process_host() { return kHost; }

ListeningToPlugins::ListeningToPlugins(const Context& context) : before_(listener) {
  listener = &context;
}

ListeningToPlugins::~ListeningToPlugins() { listener = before_; }

void set_plugin_log(Log log) {
  const std::lock_guard lock(process_log().mutex);
  process_log().log = std::move(log);
}

}  // namespace graft
