#include "applying/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <limits>
#include <string>

#include "graft/error.h"

namespace graft {
namespace {

int cuda_devices() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount(); }

}  // namespace

void require_device(const c10::Device& device) {
  if (device.is_cpu()) return;
  // One that somebody added to LibTorch.
  if (!device.is_cuda() && device.type() == at::getAccelerator()) return;
  if (!device.is_cuda())
    throw Error(ErrorKind::usage, "models cannot be loaded to this device")
        .expected("cpu, cuda or cuda:N")
        .found(quote(device.str()));
  if (!at::hasCUDA())
    throw Error(ErrorKind::usage, "there is no CUDA device that LibTorch can use")
        .hint("graft doctor says why; use --device cpu");
  const auto count = cuda_devices();
  if (device.has_index() && device.index() >= count)
    throw Error(ErrorKind::usage, "there is no such CUDA device")
        .expected("cuda:0 to cuda:" + std::to_string(count - 1))
        .found(quote(device.str()));
}

c10::Device best_device() {
  return at::hasCUDA() && cuda_devices() > 0 ? c10::Device(at::kCUDA, 0) : c10::Device(at::kCPU);
}

std::vector<DeviceMap::Memory> free_memory() {
  std::vector<DeviceMap::Memory> out;
  if (at::hasCUDA())
    for (c10::DeviceIndex i = 0; i < cuda_devices(); ++i)
      out.push_back({{at::kCUDA, i}, c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(i).first / 10 * 9});
  out.push_back({at::kCPU, std::numeric_limits<std::uint64_t>::max()});
  return out;
}

}  // namespace graft
