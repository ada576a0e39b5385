#pragma once

#include <c10/core/Device.h>

#include <cstddef>

namespace graft::test {

/// Devices for LibTorch on machines that have none: their memory is the CPU's, and every operator
/// runs on the CPU, on copies. As on a GPU, operators refuse tensors of different devices, and
/// copies that need not block happen late: when something waits for them, or uses the device.
c10::Device other_device(int index);
inline constexpr int kOtherDevices = 2;

/// Allocations of pinned memory so far.
std::size_t pinned_allocations();

}  // namespace graft::test
