#include "applying/staging.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

#include "graft/tensors.h"

namespace graft {

Staging::Staging(const c10::Device& device, std::int64_t piece)
    : device_(device), piece_(piece) {}

at::Tensor Staging::read(const Checkpoint& checkpoint, const TensorInfo& info, std::uint64_t begin,
                         std::uint64_t bytes, const std::vector<std::int64_t>& shape) {
  const c10::DeviceGuard guard(device_);
  auto out = at::empty(shape, at::TensorOptions(device_).dtype(scalar_type(info.dtype)));
  const auto to = out.view({-1}).view(at::kByte);
  const c10::impl::VirtualGuardImpl devices(device_.type());
  const auto total = static_cast<std::int64_t>(bytes);
  for (std::int64_t done = 0; done < total; done += piece_) {
    Buffer& buffer = buffers_[next_];
    next_ = 1 - next_;
    const auto count = std::min(piece_, total - done);
    if (!buffer.memory.defined()) {
      buffer.memory = at::empty({piece_}, at::TensorOptions(at::kByte).pinned_memory(true));
      buffer.copied.emplace(device_.type());
    } else {
      buffer.copied->synchronize();
    }
    checkpoint.read(info, begin + static_cast<std::uint64_t>(done),
                    static_cast<std::uint64_t>(count), buffer.memory.mutable_data_ptr());
    to.narrow(0, done, count)
        .copy_(buffer.memory.narrow(0, 0, count), /*non_blocking=*/true);
    buffer.copied->record(devices.getStream(device_));
  }
  return out;
}

at::Tensor read_planned(const Checkpoint& checkpoint, const PlannedTensor& planned,
                        Staging* staging) {
  const TensorInfo& info = checkpoint.at(planned.source);
  auto shape = info.shape;
  std::uint64_t begin = 0, bytes = info.bytes;
  nn::Region region;
  if (planned.of_source) {
    region = *planned.of_source;
    if (region.index >= 0) {
      // Only the slab of that index is read.
      bytes = info.bytes / static_cast<std::uint64_t>(shape.front());
      begin = bytes * static_cast<std::uint64_t>(region.index);
      shape.erase(shape.begin());
      region.index = -1;
    }
  }
  at::Tensor tensor;
  if (staging) {
    tensor = staging->read(checkpoint, info, begin, bytes, shape);
  } else {
    tensor = at::empty(shape, at::TensorOptions(scalar_type(info.dtype)));
    checkpoint.read(info, begin, bytes, tensor.mutable_data_ptr());
  }
  return planned.of_source ? region.of(tensor).contiguous() : tensor;
}

at::Tensor read_planned(const Checkpoint& checkpoint, const PlannedTensor& planned) {
  return read_planned(checkpoint, planned, nullptr);
}

}  // namespace graft
