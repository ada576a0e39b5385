#pragma once

#include <c10/core/Device.h>
#include <cuda_runtime_api.h>

namespace graft::cuda {

/// Emulated kernels run where they are launched; their device is the CPU.
inline cudaStream_t stream_of(const c10::Device& /*device*/) { return nullptr; }

}  // namespace graft::cuda
