#pragma once

// Flags in global memory by which blocks of a kernel wait for each other; work_split.h says why
// they may.

namespace graft::cuda {

/// Waits until another block has set a flag; one thread.
__device__ __forceinline__ void wait_for(const int* flag) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen == 0);
}
/// Sets a flag after everything that this block wrote before a barrier; one thread.
__device__ __forceinline__ void set_flag(int* flag) {
  asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
}

}  // namespace graft::cuda
