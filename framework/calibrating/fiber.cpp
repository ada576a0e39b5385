#include "calibrating/fiber.h"

#include <ATen/ThreadLocalState.h>

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <exception>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace graft {
namespace {

/// As much as a program's first thread has; only what is used takes memory.
constexpr std::size_t kStackBytes = 8 << 20;

/// The address sanitizer has to be told of every change of stacks.
struct StackOfSanitizer {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;

  void is(void* top, std::size_t bytes) {
    bottom = static_cast<const char*>(top) - bytes;
    size = bytes;
    // An earlier stack, of which a part lay here, has left marks of frames that never returned.
    __asan_unpoison_memory_region(bottom, size);
  }
  /// Before control goes from this stack to `next`.
  void go_to(const StackOfSanitizer& next, bool for_ever) {
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake, next.bottom, next.size);
  }
  /// Once control is on this stack again; `from` is where it came from.
  void arrive(StackOfSanitizer& from) {
    __sanitizer_finish_switch_fiber(fake, &from.bottom, &from.size);
  }
#else
  void is(void*, std::size_t) {}
  void go_to(const StackOfSanitizer&, bool) {}
  void arrive(StackOfSanitizer&) {}
#endif
};

}  // namespace

struct Fiber::State {
  std::function<void()> body;
  boost::context::fiber inside, outside;
  at::ThreadLocalState inside_torch, outside_torch;
  StackOfSanitizer inside_stack, outside_stack;
  std::exception_ptr thrown;
  bool ended = false;

  void begin() {
    boost::context::protected_fixedsize_stack allocator(kStackBytes);
    const auto stack = allocator.allocate();
    inside_stack.is(stack.sp, stack.size);
    inside = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(stack.sp, stack.size, stack), allocator,
        [this](boost::context::fiber&& caller) { return run(std::move(caller)); });
  }

  boost::context::fiber run(boost::context::fiber&& caller) {
    inside_stack.arrive(outside_stack);
    outside = std::move(caller);
    try {
      body();
    } catch (...) {
      thrown = std::current_exception();
    }
    body = nullptr;
    ended = true;
    inside_stack.go_to(outside_stack, /*for_ever=*/true);
    return std::move(outside);
  }
};

Fiber::Fiber(std::function<void()> body) : state_(std::make_unique<State>()) {
  state_->body = std::move(body);
}

Fiber::~Fiber() = default;

void Fiber::resume() {
  State& state = *state_;
  if (!state.inside) state.begin();
  state.outside_torch = at::ThreadLocalState();
  at::ThreadLocalState::setThreadLocalState(state.inside_torch);
  state.outside_stack.go_to(state.inside_stack, false);
  state.inside = std::move(state.inside).resume();
  state.outside_stack.arrive(state.inside_stack);
  at::ThreadLocalState::setThreadLocalState(state.outside_torch);
  if (state.thrown) std::rethrow_exception(std::exchange(state.thrown, nullptr));
}

void Fiber::leave() {
  State& state = *state_;
  state.inside_torch = at::ThreadLocalState();
  state.inside_stack.go_to(state.outside_stack, false);
  state.outside = std::move(state.outside).resume();
  state.inside_stack.arrive(state.outside_stack);
}

bool Fiber::ended() const { return state_->ended; }

}  // namespace graft
