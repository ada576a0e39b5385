#pragma once

#include <c10/core/Device.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cuda_runtime_api.h>

namespace graft::cuda {

/// LibTorch's current stream of a device.
inline cudaStream_t stream_of(const c10::Device& device) {
  const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
  return static_cast<cudaStream_t>(guard.getStreamNativeHandle(guard.getStream(device)));
}

}  // namespace graft::cuda
