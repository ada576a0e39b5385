#pragma once

#include <functional>
#include <memory>

#include "graft/export.h"

namespace graft {

/// A function on a stack of its own, which can be left in its middle and gone on with later. It
/// keeps LibTorch's thread-local state (inference mode and the like) apart from that of others.
/// Use it on the thread that made it, and let the function end before the fiber does.
class GRAFT_API Fiber {
 public:
  explicit Fiber(std::function<void()> body);
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  /// Runs the function until it calls leave() or ends; throws what it throws.
  void resume();
  /// Called by the function: resume() returns, and this does at the next resume().
  void leave();
  bool ended() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace graft
