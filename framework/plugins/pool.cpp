#include "graft/pool.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace graft {
namespace {

int32_t threads() noexcept { return static_cast<int32_t>(at::get_num_threads()); }

/// LibTorch's OpenMP threads are the pool. They take chunks one at a time, so that a thread whose
/// core is busy elsewhere holds up one chunk and not its whole share.
void run(int64_t chunks, void (*fn)(void* context, int64_t chunk) noexcept,
         void* context) noexcept {
  const int64_t workers = at::in_parallel_region() ? 1 : std::min<int64_t>(chunks, threads());
  if (workers <= 1) {
    for (int64_t i = 0; i < chunks; ++i) fn(context, i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) fn(context, i);
  });
}

constexpr graft_pool kPool{sizeof(graft_pool), &threads, &run};

}  // namespace

const graft_pool& pool() { return kPool; }

}  // namespace graft
