#include "applying/device.h"

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <map>
#include <string>
#include <vector>

#include "graft/error.h"

namespace graft {
namespace {

int cuda_devices() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount(); }

}  // namespace

void require_device(const c10::Device& device) {
  if (device.is_cpu()) return;
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

void move_model(Model& model, const c10::Device& device) {
  struct Place {
    nn::Block* block;
    std::string name;
  };
  std::map<const void*, std::vector<Place>> places;
  for (const auto& module : model.modules())
    if (auto* block = dynamic_cast<nn::Block*>(module.get()))
      for (const auto& [name, tensor] : block->own_tensors())
        places[tensor.unsafeGetTensorImpl()].push_back({block, name});
  model.to(device);
  for (const auto& [tensor, shared] : places)
    for (std::size_t i = 1; i < shared.size(); ++i)
      for (const auto& [name, moved] : shared[0].block->own_tensors())
        if (name == shared[0].name) shared[i].block->set_tensor(shared[i].name, moved);
}

}  // namespace graft
