#pragma once

#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "graft/pool.h"

namespace graft::tests {

/// Pools for tests of kernels: `count` threads of their own a call. A staged job computes every
/// third chunk twice, as a pool does whose helper was late.
template <int count>
struct ThreadPool {
  using Run = void (*)(void*, std::int64_t) noexcept;
  struct Job {
    std::size_t shared_bytes, staging_bytes;
    std::int64_t chunks;
    char* memory;
    char* staging(std::int64_t i) {
      return memory + shared_bytes + static_cast<std::size_t>(i) * staging_bytes;
    }
  };

  static std::int32_t threads() noexcept { return count; }

  static void run(std::int64_t chunks, Run fn, void* context) noexcept {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t i; (i = next.fetch_add(1)) < chunks;) fn(context, i);
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < count; ++i) helpers.emplace_back(work);
    work();
    for (auto& helper : helpers) helper.join();
  }

  static void* open(std::uint64_t shared, std::int64_t chunks, std::uint64_t staging) noexcept {
    auto* job = new Job{(shared + 63) / 64 * 64, (staging + 63) / 64 * 64, chunks, nullptr};
    job->memory = static_cast<char*>(std::aligned_alloc(
        64, job->shared_bytes + job->staging_bytes * static_cast<std::size_t>(chunks + 1)));
    return job;
  }

  static void* shared_of(void* job) noexcept { return static_cast<Job*>(job)->memory; }

  static void run_staged(void* opaque, void (*compute)(const void*, std::int64_t, void*) noexcept,
                         void (*deliver)(void*, std::int64_t, const void*) noexcept,
                         void* context) noexcept {
    auto* job = static_cast<Job*>(opaque);
    struct Both {
      Job* job;
      void (*compute)(const void*, std::int64_t, void*) noexcept;
    } both{job, compute};
    run(
        job->chunks,
        [](void* at, std::int64_t i) noexcept {
          const auto& [inner, fn] = *static_cast<Both*>(at);
          fn(inner->memory, i, inner->staging(i));
        },
        &both);
    for (std::int64_t i = 0; i < job->chunks; ++i) {
      if (i % 3 == 1) compute(job->memory, i, job->staging(job->chunks));
      deliver(context, i, job->staging(i % 3 == 1 ? job->chunks : i));
    }
    std::free(job->memory);
    delete job;
  }

  static void drain() noexcept {}

  static constexpr graft_pool table{sizeof(graft_pool), &threads,    &run,  &open,
                                    &shared_of,         &run_staged, &drain};
};

}  // namespace graft::tests
