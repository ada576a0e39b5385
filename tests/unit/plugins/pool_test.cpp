#include "graft/pool.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "plugins/torch_threads.h"

using namespace graft;

namespace {

struct Shared {
  std::thread::id caller;
  std::atomic<bool>* released;
  std::atomic<int>* computed;
};

/// Chunk i is i * i, but another thread than the caller's waits until it is released.
void compute(const void* block, std::int64_t chunk, void* staging) noexcept {
  const auto& shared = *static_cast<const Shared*>(block);
  if (std::this_thread::get_id() != shared.caller)
    while (!shared.released->load()) std::this_thread::yield();
  *static_cast<std::int64_t*>(staging) = chunk * chunk;
  shared.computed->fetch_add(1);
}

void deliver(void* context, std::int64_t chunk, const void* staging) noexcept {
  auto& out = *static_cast<std::vector<std::int64_t>*>(context);
  out[static_cast<std::size_t>(chunk)] += *static_cast<const std::int64_t*>(staging);
}

}  // namespace

TEST_CASE("every chunk runs once, however many there are") {
  const TorchThreads two(2);
  for (const std::int64_t chunks : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> ran(static_cast<std::size_t>(chunks));
    for_each_chunk(pool(), chunks, [&](std::int64_t i) { ++ran[static_cast<std::size_t>(i)]; });
    for (const auto& count : ran) CHECK(count == 1);
  }
}

TEST_CASE("two threads work on one job at the same time") {
  const TorchThreads two(2);
  std::atomic<int> inside{0}, met{0};
  const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for_each_chunk(pool(), 2, [&](std::int64_t) {
    ++inside;
    while (inside < 2 && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    met += inside == 2;
  });
  CHECK(met == 2);
}

TEST_CASE("a job inside a chunk runs there, and LibTorch computes with one thread") {
  const TorchThreads two(2);
  std::atomic<int> inner{0}, wrong{0};
  for_each_chunk(pool(), 8, [&](std::int64_t) {
    const auto here = std::this_thread::get_id();
    if (at::get_num_threads() != 1 || pool().threads() != 1) ++wrong;
    for_each_chunk(pool(), 4, [&](std::int64_t) {
      if (std::this_thread::get_id() != here) ++wrong;
      ++inner;
    });
  });
  CHECK(inner == 32);
  CHECK(wrong == 0);
  CHECK(at::get_num_threads() == 2);
}

TEST_CASE("jobs of several threads at once all finish") {
  const TorchThreads two(2);
  std::atomic<int> ran{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) for_each_chunk(pool(), 20, [&](std::int64_t) { ++ran; });
    });
  for (auto& caller : callers) caller.join();
  CHECK(ran == 4 * 50 * 20);
}

TEST_CASE("a staged job returns although a helper is stuck, and its late result is dropped") {
  const TorchThreads two(2);
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> released{false};
    std::atomic<int> computed{0};
    std::vector<std::int64_t> out(64, 0);
    void* job = pool().open_staged(sizeof(Shared), 64, sizeof(std::int64_t));
    REQUIRE(job);
    new (pool().shared_of(job)) Shared{std::this_thread::get_id(), &released, &computed};
    pool().run_staged(job, &compute, &deliver, &out);
    for (std::int64_t i = 0; i < 64; ++i) CHECK(out[static_cast<std::size_t>(i)] == i * i);
    CHECK(computed >= 64);
    released = true;
    pool().drain();
    for (std::int64_t i = 0; i < 64; ++i) CHECK(out[static_cast<std::size_t>(i)] == i * i);
  }
}

TEST_CASE("staged jobs of changing sizes reuse the pool's memory") {
  const TorchThreads two(2);
  std::atomic<bool> released{true};
  std::atomic<int> computed{0};
  for (const std::int64_t chunks : {1, 300, 2, 40, 1000, 3}) {
    std::vector<std::int64_t> out(static_cast<std::size_t>(chunks), 0);
    void* job = pool().open_staged(sizeof(Shared), chunks, sizeof(std::int64_t));
    REQUIRE(job);
    CHECK(reinterpret_cast<std::uintptr_t>(pool().shared_of(job)) % 64 == 0);
    new (pool().shared_of(job)) Shared{std::this_thread::get_id(), &released, &computed};
    pool().run_staged(job, &compute, &deliver, &out);
    for (std::int64_t i = 0; i < chunks; ++i) CHECK(out[static_cast<std::size_t>(i)] == i * i);
  }
  pool().drain();
}

TEST_CASE("a product inside a chunk has the bits that it has with one thread") {
  const auto x = at::arange(9 * 67, at::kFloat).mul(0.7).sin().view({9, 67});
  const auto w = at::arange(67 * 129, at::kFloat).mul(0.3).sin().view({67, 129});
  at::Tensor alone;
  {
    const TorchThreads one(1);
    alone = at::mm(x, w);
  }
  const TorchThreads two(2);
  std::vector<at::Tensor> found(64);
  for_each_chunk(pool(), 64, [&](std::int64_t i) {
    found[static_cast<std::size_t>(i)] = at::mm(x, w);
  });
  for (const auto& one : found) CHECK(at::equal(one, alone));
}
