#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "graft/export.h"

namespace graft {

enum class LogLevel : int { error = 0, warning = 1, info = 2, debug = 3 };

/// What a job reports to and asks of whoever started it. Both callbacks may be empty and are called
/// from the thread that runs the job. They may use graft, but not wait for another thread that
/// does. What they throw stops the job and comes out of it, but for what a plugin says while it
/// starts: the border of plugins lets nothing through.
struct Context {
  std::function<void(LogLevel level, std::string_view component, std::string_view message)> log;
  /// `total` is 0 when unknown. Returns false when the user asked to stop.
  std::function<bool(std::string_view stage, std::uint64_t done, std::uint64_t total)> progress;

  void say(LogLevel level, std::string_view component, std::string_view message) const {
    if (log) log(level, component, message);
  }
  /// Reports and throws Error(interrupted) when the user asked to stop.
  GRAFT_API void advance(std::string_view stage, std::uint64_t done, std::uint64_t total) const;
};

}  // namespace graft
