#include "cuda/device.h"

#include <cuda_runtime_api.h>

namespace graft::cuda {
namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

Devices none(cudaError_t error) {
  int driver = 0;  // newest CUDA that it knows; 0: there is no driver
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {{}, "no driver", false};
  if (error == cudaErrorNoDevice) return {{}, "no device", false};
  if (error == cudaErrorInsufficientDriver)
    return {{},
            "the driver is for CUDA " + version(driver) + ", this build needs " +
                version(CUDART_VERSION),
            true};
  return {{}, cudaGetErrorString(error), true};
}

}  // namespace

Devices find_devices() {
  int count = 0;
  if (const auto error = cudaGetDeviceCount(&count); error != cudaSuccess) return none(error);
  Devices out;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (const auto error = cudaGetDeviceProperties(&properties, i); error != cudaSuccess)
      return none(error);
    out.list.push_back(
        {properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  if (count == 0) return none(cudaErrorNoDevice);
  return out;
}

}  // namespace graft::cuda
