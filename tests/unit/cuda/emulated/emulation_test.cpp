#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "cuda/flags.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "cuda/shared_memory.cuh"
#include "weights.h"

// What the emulation finds in kernels that are wrong.

using namespace graft;
using test::Order;

namespace {

constexpr int kThreads = 64;

/// What the launch says of a kernel that does `body`; dynamic shared memory: 256 bytes.
template <class Body>
__global__ void kernel_of(Body body) {
  body();
}
template <class Body>
std::string complaint(Body body) {
  cudaError_t error = cudaSuccess;
  try {
    error = cuda::launch_early(kernel_of<Body>, 1, kThreads, 256, false, 1, nullptr, body);
  } catch (const emulated::Misuse& misuse) {
    return misuse.what();
  }
  CHECK(error == cudaSuccess);
  return "";
}

/// Each thread's number, by way of the thread opposite.
__global__ void mirror(int* out, bool with_barrier) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

/// 16 bytes each through shared memory, read after or before they have to be there.
__global__ void copy_kernel(const int* from, int* out, bool waits) {
  GRAFT_DYNAMIC_SHARED(shared);
  const int at = static_cast<int>(threadIdx.x) * 16;
  cuda::copy(cuda::shared_address(shared + at), from + at / 4, 12);
  cuda::commit_copies();
  if (waits) cuda::wait_for_copies<0>();
  for (int i = 0; i < 4; ++i) out[at / 4 + i] = reinterpret_cast<const int*>(shared + at)[i];
}

}  // namespace

TEST_CASE("a missing barrier changes what an emulated kernel computes") {
  std::vector<int> expected(kThreads);
  for (int i = 0; i < kThreads; ++i) expected[static_cast<std::size_t>(i)] = kThreads - 1 - i;
  for (const bool with_barrier : {true, false})
    for (const auto order : {Order::ascending, Order::descending, Order::shuffled}) {
      const test::Scheduled scheduled({order});
      std::vector<int> out(kThreads);
      CHECK(cuda::launch_kernel(mirror, 1, kThreads, nullptr, out.data(), with_barrier) ==
            cudaSuccess);
      CHECK((out == expected) == with_barrier);
    }
}

TEST_CASE("an asynchronous copy is there when it was waited for, with zeros behind it") {
  alignas(16) int from[4 * 16], out[4 * 16];
  for (int i = 0; i < 4 * 16; ++i) from[i] = i + 1;
  for (const bool at_once : {true, false})
    for (const bool waits : {true, false}) {
      const test::Scheduled scheduled({Order::ascending, 1, at_once});
      CHECK(cuda::launch_early(copy_kernel, 1, 16, 256, false, 1, nullptr, +from, +out, waits) ==
            cudaSuccess);
      for (int i = 0; i < 4 * 16; ++i)
        CHECK(out[i] == (!at_once && !waits ? -1 : i % 4 == 3 ? 0 : i + 1));
    }
}

TEST_CASE("threads that wait for others in vain end the launch with a sentence") {
  CHECK(complaint([] {
          if (threadIdx.x != 5) __syncthreads();
        }) ==
        "block (0, 0, 0) waits for ever: 63 threads from 0 on are in __syncthreads, "
        "1 threads from 5 on have ended");
  CHECK(complaint([] {
          if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xFFFFFFFF, 1, 1);
        }) ==
        "block (0, 0, 0) waits for ever: 32 threads from 0 on are in __shfl_xor_sync of lanes "
        "0xffffffff, 32 threads from 16 on have ended");
  static int flag;
  CHECK(complaint([] { cuda::wait_for(&flag); }) ==
        "block (0, 0, 0) waits for ever: 64 threads from 0 on are in a flag of another block");
  // The other half may do something else, with a mask of its own.
  CHECK(complaint([] {
          __shfl_xor_sync(threadIdx.x % 32 < 16 ? 0xFFFF : 0xFFFF0000, 1, 1);
        }) == "");
}

TEST_CASE("a shuffle that asks a lane outside of its mask is found") {
  CHECK(complaint([] {
          if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xFFFF, 1, 16);
        }) == "__shfl_xor_sync asks lane 16, which is not in its mask");
  CHECK(complaint([] { __shfl_sync(0xFFFF, 1, 0); }) ==
        "block (0, 0, 0), thread 16: __shfl_sync without its own lane in the mask");
}

TEST_CASE("shared memory outside of what the launch asked for is found") {
  const std::string outside =
      "block (0, 0, 0), thread 63: it reads or writes outside of the 256 bytes of shared memory "
      "that the launch asked for";
  static int kept;
  CHECK(complaint([] {
          GRAFT_DYNAMIC_SHARED(shared);
          kept = reinterpret_cast<volatile int*>(shared)[threadIdx.x + 1];
        }) == outside);
  CHECK(complaint([] {
          GRAFT_DYNAMIC_SHARED(shared);
          reinterpret_cast<volatile int*>(shared)[threadIdx.x + 1] = 1;
        }) == outside);
  CHECK(complaint([] {
          GRAFT_DYNAMIC_SHARED(shared);
          reinterpret_cast<volatile int*>(shared)[-1] = 1;
        }) == "block (0, 0, 0) wrote beside its shared memory");
  CHECK(complaint([] {
          GRAFT_DYNAMIC_SHARED(shared);
          std::uint32_t b[4];
          cuda::load_matrices(b, cuda::shared_address(shared) + threadIdx.x % 32 * 16);
        }) == "block (0, 0, 0), thread 31: ldmatrix outside of shared memory");
  CHECK(complaint([] {
          GRAFT_DYNAMIC_SHARED(shared);
          cuda::copy(cuda::shared_address(shared) + 8, nullptr, 0);
        }) ==
        "block (0, 0, 0), thread 0: cp.async at 0x100008, which is not a multiple of 16");
}

TEST_CASE("a launch that no device would take is refused") {
  const auto launched = [](dim3 blocks, unsigned threads, std::size_t shared_bytes) {
    int* const nothing = nullptr;
    const auto empty = +[](int*) {};
    return cuda::launch_early(empty, blocks, threads, shared_bytes, false, 1, nullptr, nothing);
  };
  CHECK(launched(1, 1024, 48 << 10) == cudaSuccess);
  CHECK(launched(0, 32, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(dim3(1, 65536), 32, 0) == cudaErrorInvalidConfiguration);
  CHECK(launched(1, 1025, 0) == cudaErrorInvalidConfiguration);
  // More needs cudaFuncSetAttribute().
  CHECK(launched(1, 32, (48 << 10) + 16) == cudaErrorInvalidValue);
}
