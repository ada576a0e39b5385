#pragma once

#include <cstdint>

#include "block.h"

// In place of framework/cuda/shared_memory.cuh.

#define GRAFT_DYNAMIC_SHARED(name) char* const name = graft::emulated::dynamic_shared()

namespace graft::cuda {

using emulated::commit_copies;
using emulated::shared_address;

inline std::uint32_t load_shared(std::uint32_t address) {
  return *reinterpret_cast<const std::uint32_t*>(
      emulated::at_shared("ld.shared.b32", address, 4, 4));
}
inline std::uint64_t evict_first() { return 0; }
inline void copy_once(std::uint32_t to, const void* from, std::uint64_t) {
  emulated::copy_later(to, from, 16);
}
inline void copy(std::uint32_t to, const void* from, int bytes) {
  emulated::copy_later(to, from, bytes);
}
template <int kPending>
void wait_for_copies() {
  emulated::wait_for_copies(kPending);
}

}  // namespace graft::cuda
