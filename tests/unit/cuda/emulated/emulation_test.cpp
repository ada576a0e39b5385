#include <doctest/doctest.h>

#include <vector>

#include "cuda/launch.cuh"
#include "cuda/shared_memory.cuh"

using namespace graft;
using emulated::Misuse;
using emulated::Schedule;

namespace {

constexpr int kThreads = 64;

/// Each thread's number from the thread opposite.
__global__ void mirror(int* out, bool with_barrier) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

std::vector<int> mirrored(bool with_barrier, Schedule::Order order) {
  std::vector<int> out(kThreads);
  emulated::set_schedule({order});
  CHECK(cuda::launch_kernel(mirror, 1, kThreads, nullptr, out.data(), with_barrier) ==
        cudaSuccess);
  emulated::set_schedule({});
  return out;
}

}  // namespace

TEST_CASE("a missing barrier changes what an emulated kernel computes") {
  using Order = Schedule::Order;
  std::vector<int> expected(kThreads);
  for (int i = 0; i < kThreads; ++i) expected[i] = kThreads - 1 - i;
  for (const auto order : {Order::ascending, Order::descending, Order::shuffled}) {
    CHECK(mirrored(true, order) == expected);
    CHECK(mirrored(false, order) != expected);
  }
}
