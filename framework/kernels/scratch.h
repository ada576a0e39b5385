#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace graft::kernels {

/// Memory, aligned to 64 bytes, that only grows; one a thread. Not for files of a CPU level.
class Scratch {
 public:
  /// Throws std::bad_alloc. What was there before is lost.
  std::byte* at_least(std::int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<std::byte*>(
          ::operator new[](static_cast<std::size_t>(bytes), std::align_val_t(64))));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::int64_t size_ = 0;
};

inline std::int64_t round_up_64(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace graft::kernels
