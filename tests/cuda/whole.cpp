// A library with every CUDA kernel in it, and this.
#include "cuda/device.h"

extern "C" __attribute__((visibility("default"))) int graft_cuda_device_count() {
  return static_cast<int>(graft::cuda::find_devices().list.size());
}
