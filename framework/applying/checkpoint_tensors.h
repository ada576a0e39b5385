#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "graft/checkpoint.h"

namespace graft {

/// Part of a model folder to write; the tensor is copied, where it has to be, when its turn comes.
TensorToWrite to_write(std::string name, const at::Tensor& tensor);
/// A tensor of a checkpoint in its own dtype, on the CPU.
at::Tensor read_tensor(const Checkpoint& checkpoint, const TensorInfo& info);

}  // namespace graft
