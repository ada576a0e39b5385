#include "graft/pool.h"

#include <ATen/Parallel.h>
#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "plugins/one_torch_thread.h"

// Of MKL inside LibTorch, when it is built with it.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace graft {
namespace {

using Clock = std::chrono::steady_clock;

/// How long a thread without work looks for some before it sleeps. Longer than the gap between two
/// products of a small model, shorter than anybody's patience for a busy core.
constexpr std::chrono::microseconds kSpin{100};

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

using RunFn = void (*)(void* context, int64_t chunk) noexcept;
using ComputeFn = void (*)(const void* shared, int64_t chunk, void* staging) noexcept;
using DeliverFn = void (*)(void* context, int64_t chunk, const void* staging) noexcept;

std::size_t round_up(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Jobs are made once and used again, never freed: a thread that comes late may still look at one.
struct Job {
  std::atomic<int64_t> next{0};      ///< the chunk that is claimed next
  std::atomic<int64_t> done{0};      ///< chunks that are finished (plain jobs)
  std::atomic<int32_t> visitors{0};  ///< helpers that may be reading this
  bool taken = false;                ///< under Pool::mutex_
  int64_t chunks = 0;
  int32_t helpers = 0;  ///< how many may take part

  RunFn run = nullptr;
  void* context = nullptr;

  ComputeFn compute = nullptr;
  std::size_t shared_bytes = 0, staging_bytes = 0;
  std::size_t capacity = 0;
  std::byte* memory = nullptr;                 ///< shared, then chunks + 1 staging areas
  std::unique_ptr<std::atomic<bool>[]> ready;  ///< by chunk (staged jobs)
  int64_t ready_capacity = 0;
  std::vector<char> delivered;  ///< by chunk, for the caller alone

  std::byte* staging(int64_t chunk) {
    return memory + shared_bytes + static_cast<std::size_t>(chunk) * staging_bytes;
  }
};

/// Whether this thread is inside a chunk: then jobs run here, one chunk after another.
thread_local bool inside = false;

/// Threads that jobs of this thread may have while LibTorch is held to one; 0: as many as it has.
thread_local int held = 0;

int allowed_threads() { return held > 0 ? held : at::get_num_threads(); }

/// Gives MKL this number of threads in the calling thread, and what it had. OpenMP's number does not
/// count where LibTorch has set MKL's, as it does on a thread's first call.
int limit_mkl(int threads) noexcept {
  return MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(threads) : 0;
}

/// LibTorch computes with one thread while a job of ours runs, in this thread and in the helpers.
class OneThreadForTorch {
 public:
  OneThreadForTorch()
      : before_(omp_get_max_threads()), mkl_before_(limit_mkl(1)), inside_before_(inside) {
    inside = true;
    if (before_ != 1) omp_set_num_threads(1);
  }
  ~OneThreadForTorch() {
    if (before_ != 1) omp_set_num_threads(before_);
    limit_mkl(mkl_before_);
    inside = inside_before_;
  }
  OneThreadForTorch(const OneThreadForTorch&) = delete;
  OneThreadForTorch& operator=(const OneThreadForTorch&) = delete;

 private:
  int before_, mkl_before_;
  bool inside_before_;
};

/// libgomp's threads spin for milliseconds after each parallel region of LibTorch's, beside whoever
/// would work by then, unless there are more of them than processors. Of a helper it knows nothing;
/// of the second thread in a team that this one has begun it does, and the two stand for each other.
void be_counted_by_libgomp() noexcept {
  try {
    std::thread([] {}).join();
  } catch (...) {
    return;  // where the system gives no more threads libgomp would end the process
  }
#pragma omp parallel num_threads(2)
  relax();
}

class Pool {
 public:
  static Pool& get() {
    // Never destroyed: its threads outlive static destructors. Nor allocated: callers may not throw.
    alignas(Pool) static std::byte memory[sizeof(Pool)];
    static Pool* pool = new (memory) Pool;
    // A forked child has none of the threads, and perhaps their locks and half-done jobs: it starts
    // with a new pool, and what the old one held stays where it lies.
    [[maybe_unused]] static const int watched =
        ::pthread_atfork(nullptr, nullptr, [] { new (memory) Pool; });
    return *pool;
  }

  void run(int64_t chunks, RunFn fn, void* context) {
    if (chunks < 1) return;
    Job* job = chunks > 1 && may_share() ? open(0, 0, 0) : nullptr;
    if (!job) {
      for (int64_t i = 0; i < chunks; ++i) fn(context, i);
      return;
    }
    job->chunks = chunks;
    job->compute = nullptr;
    job->run = fn;
    job->context = context;
    const int32_t helpers = allowed_threads() - 1;  // the guard makes it none
    const OneThreadForTorch guard;
    const bool shared = publish(job, helpers);
    int64_t own = 0;
    for (int64_t i; (i = job->next.fetch_add(1, std::memory_order_relaxed)) < chunks; ++own)
      fn(context, i);
    if (shared) retract();
    // Only for chunks that a helper claimed: their function writes to the caller's memory.
    while (job->done.load(std::memory_order_acquire) + own < chunks) relax();
    close(job);
  }

  Job* open(std::size_t shared_bytes, int64_t chunks, std::size_t staging_bytes) noexcept try {
    const std::lock_guard lock(mutex_);
    Job* job = nullptr;
    for (const auto& candidate : jobs_)
      if (!candidate->taken && candidate->visitors.load(std::memory_order_seq_cst) == 0) {
        job = candidate.get();
        break;
      }
    if (!job) job = jobs_.emplace_back(std::make_unique<Job>()).get();
    job->shared_bytes = round_up(shared_bytes);
    job->staging_bytes = round_up(staging_bytes);
    const std::size_t bytes =
        job->shared_bytes + job->staging_bytes * static_cast<std::size_t>(chunks + 1);
    if (bytes > job->capacity) {
      std::free(job->memory);
      job->capacity = 0;
      job->memory = static_cast<std::byte*>(std::aligned_alloc(64, bytes));
      if (!job->memory) return nullptr;
      job->capacity = bytes;
    }
    if (chunks > job->ready_capacity) {
      job->ready_capacity = 0;
      job->ready = std::make_unique<std::atomic<bool>[]>(static_cast<std::size_t>(chunks));
      job->ready_capacity = chunks;
    }
    for (int64_t i = 0; i < chunks; ++i) job->ready[i].store(false, std::memory_order_relaxed);
    job->delivered.assign(static_cast<std::size_t>(chunks), 0);
    job->chunks = chunks;
    job->next.store(0, std::memory_order_relaxed);
    job->done.store(0, std::memory_order_relaxed);
    job->taken = true;
    return job;
  } catch (...) {
    return nullptr;
  }

  void run_staged(Job* job, ComputeFn compute, DeliverFn deliver, void* context) {
    job->compute = compute;
    const int64_t chunks = job->chunks;
    const bool sharing = chunks > 1 && may_share();
    const int32_t helpers = allowed_threads() - 1;  // the guard makes it none
    const OneThreadForTorch guard;
    const bool shared = sharing && publish(job, helpers);
    const auto begin = Clock::now();
    int64_t own = 0;
    for (int64_t i; (i = job->next.fetch_add(1, std::memory_order_relaxed)) < chunks; ++own) {
      compute(job->memory, i, job->staging(i));
      deliver(context, i, job->staging(i));
      job->delivered[static_cast<std::size_t>(i)] = 1;
    }
    if (shared) {
      retract();
      finish_staged(job, compute, deliver, context,
                    (Clock::now() - begin) / std::max<int64_t>(own, 1));
    }
    close(job);
  }

  /// Allocates nothing: it runs in destructors, of models that memory ran out for too.
  void drain() {
    for (std::size_t i = 0;; ++i) {
      const Job* closed = nullptr;
      {
        const std::lock_guard lock(mutex_);
        if (i >= jobs_.size()) return;  // jobs come, and none goes
        if (!jobs_[i]->taken) closed = jobs_[i].get();
      }
      while (closed && closed->visitors.load(std::memory_order_seq_cst) > 0) relax();
    }
  }

 private:
  /// What the caller still lacks: takes what helpers finish, and after the time of one chunk
  /// computes the rest itself.
  void finish_staged(Job* job, ComputeFn compute, DeliverFn deliver, void* context,
                     Clock::duration chunk_time) {
    const int64_t chunks = job->chunks;
    auto deadline =
        Clock::now() + std::max<Clock::duration>(chunk_time, std::chrono::microseconds(5));
    for (int64_t i = 0; i < chunks; ++i) {
      if (job->delivered[static_cast<std::size_t>(i)]) continue;
      while (!job->ready[i].load(std::memory_order_acquire) && Clock::now() < deadline) relax();
      if (job->ready[i].load(std::memory_order_acquire)) {
        deliver(context, i, job->staging(i));
      } else {
        compute(job->memory, i, job->staging(chunks));
        deliver(context, i, job->staging(chunks));
      }
    }
  }

  /// Whether others may help: not from inside a chunk or one of LibTorch's parallel regions.
  bool may_share() const {
    return !inside && !at::in_parallel_region() && allowed_threads() > 1;
  }

  /// False when another thread's job is being worked on: helpers serve one job at a time.
  bool publish(Job* job, int32_t helpers) {
    if (!start(helpers)) return false;
    job->helpers = helpers;
    Job* none = nullptr;
    if (!current_.compare_exchange_strong(none, job, std::memory_order_seq_cst)) return false;
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
    return true;
  }

  void retract() { current_.store(nullptr, std::memory_order_seq_cst); }

  void close(Job* job) {
    const std::lock_guard lock(mutex_);
    job->taken = false;
  }

  /// Makes threads up to `count`; false when there is none.
  bool start(int32_t count) {
    if (started_.load(std::memory_order_acquire) >= count) return count > 0;
    const std::lock_guard lock(mutex_);
    try {
      while (started_.load(std::memory_order_relaxed) < count) {
        const int32_t index = started_.load(std::memory_order_relaxed);
        std::thread([this, index] { help(index); }).detach();
        started_.store(index + 1, std::memory_order_release);
      }
    } catch (...) {
      // The system gives no more threads: those that there are do.
    }
    while (ready_.load(std::memory_order_acquire) < started_.load(std::memory_order_relaxed))
      std::this_thread::yield();
    return started_.load(std::memory_order_relaxed) > 0;
  }

  [[noreturn]] void help(int32_t index) {
    at::get_num_threads();  // LibTorch sets its number on a thread's first call, so before ours
    omp_set_num_threads(1);
    inside = true;
    limit_mkl(1);
    be_counted_by_libgomp();
    ready_.fetch_add(1, std::memory_order_release);
    for (uint32_t seen = 0;;) {
      seen = wait_for_job(seen);
      Job* job = current_.load(std::memory_order_seq_cst);
      if (!job) continue;
      job->visitors.fetch_add(1, std::memory_order_seq_cst);
      // Read again: between the two the job may have ended and be somebody else's.
      if (current_.load(std::memory_order_seq_cst) == job && index < job->helpers) work(job);
      job->visitors.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  void work(Job* job) {
    const int64_t chunks = job->chunks;
    for (int64_t i; (i = job->next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      if (job->compute) {
        job->compute(job->memory, i, job->staging(i));
        job->ready[i].store(true, std::memory_order_release);
      } else {
        job->run(job->context, i);
        job->done.fetch_add(1, std::memory_order_release);
      }
    }
  }

  /// Returns a number of the epoch that is not `seen`.
  uint32_t wait_for_job(uint32_t seen) {
    const auto until = Clock::now() + kSpin;
    for (uint32_t rounds = 0;; ++rounds) {
      const uint32_t now = epoch_.load(std::memory_order_acquire);
      if (now != seen) return now;
      relax();
      if (rounds % 16 == 15 && Clock::now() > until) break;
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.wait(seen, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    return epoch_.load(std::memory_order_acquire);
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::atomic<Job*> current_{nullptr};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int32_t> sleepers_{0}, started_{0}, ready_{0};
};

int32_t threads() noexcept {
  return inside || at::in_parallel_region() ? 1 : static_cast<int32_t>(allowed_threads());
}

void run(int64_t chunks, RunFn fn, void* context) noexcept { Pool::get().run(chunks, fn, context); }

void* open_staged(uint64_t shared_bytes, int64_t chunks, uint64_t staging_bytes) noexcept {
  return Pool::get().open(shared_bytes, chunks, staging_bytes);
}

void* shared_of(void* job) noexcept { return static_cast<Job*>(job)->memory; }

void run_staged(void* job, ComputeFn compute, DeliverFn deliver, void* context) noexcept {
  Pool::get().run_staged(static_cast<Job*>(job), compute, deliver, context);
}

void drain() noexcept { Pool::get().drain(); }

constexpr graft_pool kPool{sizeof(graft_pool), &threads,    &run,  &open_staged,
                           &shared_of,         &run_staged, &drain};

}  // namespace

const graft_pool& pool() { return kPool; }

OneTorchThread::OneTorchThread() : torch_before_(at::get_num_threads()), pool_before_(held) {
  held = allowed_threads();
  if (torch_before_ != 1) at::set_num_threads(1);
}

OneTorchThread::~OneTorchThread() {
  if (torch_before_ != 1) at::set_num_threads(torch_before_);
  held = pool_before_;
}

}  // namespace graft
