#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "graft/context.h"
#include "graft/plugin_abi.h"

namespace graft {

/// What a plugin may ask of the process it lives in, given to its init. Lives as long as the
/// process; all functions are thread-safe. Without a host (operators loaded into Python alone)
/// messages are dropped and every interface is absent.
/// What belongs to one job, progress and cancelling above all, comes with its Context instead.
class Runtime {
 public:
  void log(LogLevel level, std::string_view message) const noexcept {
    const graft_host* host = host_.load(std::memory_order_acquire);
    if (!host || !host->log) return;
    try {
      host->log(host->self, static_cast<std::int32_t>(level), component_,
                std::string(message).c_str());
    } catch (const std::bad_alloc&) {
      // A message that cannot be copied is dropped: logging never fails its caller.
    }
  }

  /// An optional interface of the host, such as "graft.host.pool/1"; nullptr when it has none.
  const void* query(const char* interface_id) const noexcept {
    const graft_host* host = host_.load(std::memory_order_acquire);
    return host && host->query ? host->query(host->self, interface_id) : nullptr;
  }

  /// For the wrappers of plugin.h; `component` is the plugin's id.
  constexpr explicit Runtime(const char* component) : component_(component) {}
  void attach(const graft_host* host) noexcept { host_.store(host, std::memory_order_release); }

 private:
  std::atomic<const graft_host*> host_{nullptr};
  const char* component_;
};

}  // namespace graft
