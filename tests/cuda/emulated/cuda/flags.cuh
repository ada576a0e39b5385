#pragma once

#include "block.h"

// In place of framework/cuda/flags.cuh.

namespace graft::cuda {

inline void wait_for(const int* flag) {
  emulated::wait_until("a flag of another block", [flag] { return *flag != 0; });
}
inline void set_flag(int* flag) { *flag = 1; }

}  // namespace graft::cuda
