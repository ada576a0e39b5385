#pragma once

#include <c10/core/Device.h>

namespace graft {

/// Throws Error(usage) for a device that models cannot be loaded to here.
void require_device(const c10::Device& device);

/// The first CUDA device that LibTorch can use, or the CPU.
c10::Device best_device();

}  // namespace graft
