#pragma once

#include <cuda_runtime.h>

#include <tuple>

// In place of framework/cuda/launch.cuh: a kernel has run when its launch returns.

namespace graft::emulated {

/// cudaSuccess, or what the run time would say of such a launch.
cudaError_t check_launch(const void* kernel, dim3 blocks, unsigned threads,
                         std::size_t shared_bytes);

}  // namespace graft::emulated

namespace graft::cuda {

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}

template <class... Parameters, class... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
                         std::size_t shared_bytes, bool, int cluster, cudaStream_t,
                         const Arguments&... arguments) {
  if (cluster != 1) return cudaErrorNotSupported;
  const auto error = emulated::check_launch(reinterpret_cast<const void*>(kernel), blocks, threads,
                                            shared_bytes);
  if (error != cudaSuccess) return error;
  const std::tuple<Parameters...> converted(arguments...);
  emulated::run_grid(blocks, dim3(threads), shared_bytes,
                     [&] { std::apply(kernel, converted); });
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 blocks, unsigned threads,
                          cudaStream_t stream, const Arguments&... arguments) {
  return launch_early(kernel, blocks, threads, 0, false, 1, stream, arguments...);
}

}  // namespace graft::cuda
