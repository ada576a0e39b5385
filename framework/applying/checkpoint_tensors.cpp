#include "applying/checkpoint_tensors.h"

#include <ATen/ATen.h>

#include <memory>
#include <utility>

#include "graft/tensors.h"

namespace graft {

TensorToWrite to_write(std::string name, const at::Tensor& tensor) {
  return {std::move(name), dtype_of(tensor.scalar_type()), tensor.sizes().vec(), [tensor] {
            const auto flat = tensor.detach().to(at::kCPU).contiguous();
            return std::shared_ptr<const void>(flat.const_data_ptr(), [flat](const void*) {});
          }};
}

at::Tensor read_tensor(const Checkpoint& checkpoint, const TensorInfo& info) {
  auto tensor = at::empty(info.shape, at::TensorOptions(scalar_type(info.dtype)));
  checkpoint.read(info, tensor.mutable_data_ptr());
  return tensor;
}

}  // namespace graft
