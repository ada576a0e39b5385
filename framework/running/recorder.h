#pragma once

#include <functional>
#include <string>

namespace graft {

/// Keeps what a function asks of a device, and does it again with the same addresses and the same
/// values from the host.
class Recorder {
 public:
  virtual ~Recorder() = default;

  /// Runs `work`, perhaps several times, and keeps what it does in the place of what was kept
  /// before. Returns why that cannot be kept, or nothing. Throws what `work` throws where it would
  /// fail without being recorded.
  [[nodiscard]] virtual std::string record(const std::function<void()>& work) = 0;
  /// What was kept, on the current stream.
  virtual void replay() = 0;
};

}  // namespace graft
