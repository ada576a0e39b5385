#include "graft/activations.h"

#include <atomic>
#include <string>

#include "graft/error.h"

namespace graft {
namespace {

std::atomic<int32_t> chosen{GRAFT_ACT_AUTO};

int32_t mode() noexcept { return chosen.load(std::memory_order_relaxed); }

constexpr graft_activations kActivations{sizeof(graft_activations), &mode};

}  // namespace

const graft_activations& activations() { return kActivations; }

void set_activation_mode(graft_activation_mode value) {
  chosen.store(value, std::memory_order_relaxed);
}

graft_activation_mode parse_activation_mode(std::string_view word) {
  constexpr std::string_view kWords[] = {"auto", "a15", "a8", "bf16", "f32"};
  for (int i = 0; i < 5; ++i)
    if (word == kWords[i]) return static_cast<graft_activation_mode>(i);
  throw Error(ErrorKind::usage, "no such activation mode")
      .expected("auto, a15, a8, bf16 or f32")
      .found(quote(word));
}

}  // namespace graft
