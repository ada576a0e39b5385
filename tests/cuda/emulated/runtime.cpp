#include <cuda_runtime_api.h>

#include <cstring>
#include <map>

#include "block.h"
#include "cuda/launch.cuh"
#include "cuda/wgmma_product.h"

// CUDA's run time for one device of sm_80 whose memory is the host's. Only what kernels' host code
// calls is here.

namespace graft::emulated {
namespace {

constexpr std::size_t kSharedWithoutAsking = 48 << 10;

/// What each kernel asked for.
std::map<const void*, std::size_t>& shared_limits() {
  static std::map<const void*, std::size_t> limits;
  return limits;
}

}  // namespace

cudaError_t check_launch(const void* kernel, dim3 blocks, unsigned threads,
                         std::size_t shared_bytes) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.x > INT32_MAX ||
      blocks.y > UINT16_MAX || blocks.z > UINT16_MAX || threads == 0 || threads > 1024)
    return cudaErrorInvalidConfiguration;
  const auto asked = shared_limits().find(kernel);
  const bool fits =
      shared_bytes <= kSharedWithoutAsking ||
      (asked != shared_limits().end() && shared_bytes <= asked->second);
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace graft::emulated

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  switch (what) {
    case cudaDevAttrMultiProcessorCount:
      *value = graft::emulated::kProcessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(graft::emulated::kMostSharedBytes);
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute what, int value) {
  if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value < 0 || static_cast<std::size_t>(value) > graft::emulated::kMostSharedBytes)
    return cudaErrorInvalidValue;
  graft::emulated::shared_limits()[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

}  // extern "C"

// wgmma is of sm_90.
namespace graft::cuda {

WgmmaPlan plan_wgmma(const FragmentShape&, std::int64_t, const DeviceLimits&) { return {}; }
WgmmaPlan plan_wgmma(const FragmentShape&, std::int64_t, const DeviceLimits&, int, int, int) {
  return {};
}
cudaError_t multiply_wgmma(const WgmmaPlan&, const ProductArgs&, cudaStream_t) {
  return cudaErrorNotSupported;
}

}  // namespace graft::cuda
