#include <c10/cuda/CUDAGuard.h>

#include "on_device.h"
#include "sentences.h"

/// Exit codes: 0, 1 when a sentence is false, 77 without a device.
int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 77;
  }
  at::manual_seed(1);
  const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
  return graft::test::run_sentences(argc > 1 ? argv[1] : "");
}
