#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <array>
#include <optional>
#include <vector>

#include "graft/checkpoint.h"
#include "graft/export.h"
#include "graft/plan.h"

namespace graft {

/// Tensors of a checkpoint on their way to a device (not the CPU), through two buffers of pinned
/// memory by turns: one is read into while the other is copied. Copies run on LibTorch's current
/// stream of the device. Not thread-safe.
class GRAFT_API Staging {
 public:
  /// `piece`: bytes of a buffer.
  explicit Staging(const c10::Device& device, std::int64_t piece = 32 << 20);
  const c10::Device& device() const { return device_; }

  /// Bytes [begin, begin + bytes) of a tensor as one of `shape` on the device, in the file's dtype.
  at::Tensor read(const Checkpoint& checkpoint, const TensorInfo& info, std::uint64_t begin,
                  std::uint64_t bytes, const std::vector<std::int64_t>& shape);

 private:
  struct Buffer {
    at::Tensor memory;  ///< uint8, pinned; made at the first use
    std::optional<c10::Event> copied;
  };
  c10::Device device_;
  std::int64_t piece_;
  std::array<Buffer, 2> buffers_;
  std::size_t next_ = 0;
};

/// read_planned() to the device of `staging`; nullptr: to the CPU.
at::Tensor read_planned(const Checkpoint& checkpoint, const PlannedTensor& planned,
                        Staging* staging);

}  // namespace graft
