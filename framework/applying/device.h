#pragma once

#include <c10/core/Device.h>

#include <vector>

#include "graft/device_map.h"

namespace graft {

/// Throws Error(usage) for a device that models cannot be loaded to here.
void require_device(const c10::Device& device);

/// The first CUDA device that LibTorch can use, or the CPU.
c10::Device best_device();

/// What weights may take: nine tenths of what is free on each CUDA device, as the rest is for what
/// is computed, and then the CPU without a limit.
std::vector<DeviceMap::Memory> free_memory();

}  // namespace graft
