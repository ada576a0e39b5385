#include "cli/conformance/process_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <clocale>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <new>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "checkpoint/folder.h"
#include "graft/pool.h"

extern char** environ;

namespace graft::cli {
namespace {

std::string signals() {
  sigset_t blocked;
  sigemptyset(&blocked);
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  std::string out;
  for (int number = 1; number < 32; ++number) {
    struct sigaction action {};
    sigaction(number, nullptr, &action);
    out += std::to_string(sigismember(&blocked, number)) + ":" +
           std::to_string(reinterpret_cast<std::uintptr_t>(action.sa_handler)) + " ";
  }
  return out;
}

std::string environment() {
  std::string out;
  for (char** entry = environ; entry && *entry; ++entry) out += std::string(*entry) + "\n";
  return out;
}

std::string file_mode_mask() {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  return std::to_string(mask);
}

std::size_t threads() {
  return names_in("/proc/self/task").size();
}

constexpr std::size_t kGuard = 64;
constexpr int kPattern = 0xA5;
std::atomic<bool> guard_damaged{false};
std::atomic<std::uint64_t> bytes_allocated{0};

/// [size, guard][data][guard], the data aligned to 64 bytes.
class Guarded final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size) override {
    bytes_allocated += size;
    const std::size_t whole = (size + 3 * kGuard - 1) / kGuard * kGuard;
    auto* base = static_cast<unsigned char*>(std::aligned_alloc(kGuard, whole));
    if (!base) throw std::bad_alloc();
    std::memset(base, kPattern, whole);
    std::memcpy(base, &size, sizeof(size));
    return {base + kGuard, base + kGuard, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  static void release(void* data) {
    auto* base = static_cast<unsigned char*>(data) - kGuard;
    std::size_t size = 0;
    std::memcpy(&size, base, sizeof(size));
    const auto intact = [](const unsigned char* from, const unsigned char* to) {
      for (; from != to; ++from)
        if (*from != kPattern) return false;
      return true;
    };
    const auto* end = base + kGuard + size;
    if (!intact(base + sizeof(size), base + kGuard) || !intact(end, end + kGuard))
      guard_damaged = true;
    std::free(base);
  }
};

c10::Allocator* former_allocator = nullptr;

}  // namespace

ProcessState ProcessState::now() {
  ProcessState state;
  auto& v = state.values;
  v["the locale"] = std::setlocale(LC_ALL, nullptr);
  v["the rounding mode"] = std::to_string(std::fegetround());
#if defined(__x86_64__)
  v["the floating-point control word"] = std::to_string(_mm_getcsr() & ~0x3FU);
#endif
  v["the working directory"] = std::filesystem::current_path().string();
  v["signal masks and handlers"] = signals();
  v["the environment"] = environment();
  v["the file mode mask"] = file_mode_mask();
  v["the terminate handler"] =
      std::to_string(reinterpret_cast<std::uintptr_t>(std::get_terminate()));
  v["LibTorch's number of threads"] = std::to_string(at::get_num_threads());
  v["LibTorch's default dtype"] =
      std::string(c10::toString(c10::get_default_dtype_as_scalartype()));
  v["LibTorch's grad mode"] = std::to_string(c10::GradMode::is_enabled());
  v["LibTorch's inference mode"] = std::to_string(c10::InferenceMode::is_enabled());
  v["the number of threads"] = std::to_string(threads());
  state.generator = at::detail::getDefaultCPUGenerator().get_state();
  return state;
}

std::vector<std::string> ProcessState::changes(const ProcessState& later) const {
  std::vector<std::string> out;
  for (const auto& [what, value] : values)
    if (later.values.at(what) != value) {
      const bool brief = value.size() < 40 && later.values.at(what).size() < 40;
      out.push_back(what + " changed" +
                    (brief ? " from " + value + " to " + later.values.at(what) : ""));
    }
  if (!at::equal(generator, later.generator))
    out.emplace_back("the state of LibTorch's random number generator changed");
  return out;
}

void start_own_threads() {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const auto x = at::ones({512, 512}, at::TensorOptions(dtype));
    at::linear(x, x).add_(1);
  }
  std::atomic<int> sum{0};
  for_each_chunk(pool(), 64, [&](std::int64_t) { ++sum; });
}

GuardedMemory::GuardedMemory() {
  static auto& guarded = *new Guarded;
  former_allocator = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&guarded, /*priority=*/100);
}

GuardedMemory::~GuardedMemory() { c10::SetCPUAllocator(former_allocator, /*priority=*/100); }

bool GuardedMemory::damaged() { return guard_damaged; }
std::uint64_t GuardedMemory::allocated() { return bytes_allocated; }

}  // namespace graft::cli
