#pragma once

#include <vector_types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

// Kernels on the CPU: the threads of a block are fibers, of which one runs at a time until it waits
// for others; blocks run one after the other by their index. One thread of the host at a time.

namespace graft::emulated {

/// What a device might do with a kernel that breaks CUDA's rules, as a sentence. Thrown by the
/// launch; the blocks that are left do not run.
struct Misuse : std::logic_error {
  using std::logic_error::logic_error;
};

/// What CUDA leaves open. A kernel has to give the same bits with all of these.
struct Schedule {
  /// Which of the threads that are free to go on does so, up to where it has to wait.
  enum class Order { ascending, descending, shuffled } order = Order::ascending;
  std::uint32_t seed = 1;  ///< of the shuffles, another one each block
  /// When an asynchronous copy is made: at once, or where it is waited for.
  bool copies_at_once = false;
};
/// For every launch from here on.
void set_schedule(const Schedule& schedule);

/// What the device is asked for; of sm_80.
inline constexpr int kProcessors = 5;
inline constexpr std::size_t kMostSharedBytes = 163 << 10;

/// Runs `thread` once for each thread of the grid, with the built-in variables set.
void run_grid(dim3 blocks, dim3 threads, std::size_t shared_bytes,
              const std::function<void()>& thread);

// For code of a kernel.

/// __syncthreads().
void meet_block();
/// Waits until all lanes of `mask` have called it with the same name; the last one to come runs
/// `together` with what each gave, null for lanes that are not in the mask.
using Lanes = std::array<void*, 32>;
void meet_warp(std::uint32_t mask, const char* name, void* own,
               const std::function<void(const Lanes&)>& together);
int own_lane();
/// Lets others run until `ready`.
void wait_until(const char* what, const std::function<bool()>& ready);

/// Shared memory is 0xFF, NaN in every type, when a block begins.
char* dynamic_shared();
/// An address as instructions take it, and what is there; throws Misuse where that is not all of
/// this block's or not aligned to `alignment`.
std::uint32_t shared_address(const void* pointer);
char* at_shared(const char* who, std::uint32_t address, std::size_t bytes, std::size_t alignment);

/// cp.async of 16 bytes: the first `bytes`, then zeros.
void copy_later(std::uint32_t to, const void* from, int bytes);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace graft::emulated
