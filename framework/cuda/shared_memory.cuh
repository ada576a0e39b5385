#pragma once

#include <cstdint>

// Shared memory of a block: its addresses, and asynchronous copies into it (PTX ISA, "cp.async").
// Copies belong to the group that their thread commits next; a thread sees its own ones after it
// waited for their group, other threads after a barrier that follows.

/// The bytes that a launch asks for, as an array of char.
#define GRAFT_DYNAMIC_SHARED(name) extern __shared__ __align__(128) char name[]

namespace graft::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ std::uint32_t load_shared(std::uint32_t address) {
  std::uint32_t out;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(out) : "r"(address));
  return out;
}

/// Of what is read once.
__device__ __forceinline__ std::uint64_t evict_first() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// 16 bytes, both sides aligned to 16.
__device__ __forceinline__ void copy_once(std::uint32_t to, const void* from,
                                          std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "l"(policy)
               : "memory");
}
/// Only the first `bytes` are read, the rest of the 16 becomes zero.
__device__ __forceinline__ void copy(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// All groups but the last kPending.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace graft::cuda
