#pragma once

#include <cstddef>
#include <cstdint>

namespace graft::nn {

/// y = x W^T + b on plain memory, cut into pieces that any threads compute: how the host's decoding
/// loop multiplies, without LibTorch. The rows of a call are prepared into one block of memory, and
/// every output can be computed from it. Functions never throw and may allocate only the first time
/// a thread runs them; they read the weight of the module they come from. [any-thread]
class RowProduct {
 public:
  virtual ~RowProduct() = default;

  virtual std::int64_t in_features() const noexcept = 0;
  virtual std::int64_t out_features() const noexcept = 0;
  /// The most rows of one call that this way of multiplying is good for.
  virtual std::int64_t most_rows() const noexcept = 0;
  /// Outputs that are computed together: pieces begin at multiples of it.
  virtual std::int64_t unit() const noexcept = 0;
  /// Bytes that a unit reads of the weight.
  virtual std::int64_t unit_bytes() const noexcept = 0;

  /// Of the memory of a call with m rows, aligned to 64 bytes.
  virtual std::int64_t prepared_bytes(std::int64_t m) const noexcept = 0;
  /// Begins a call: before its first prepare(). Returns the number of parts that its rows are
  /// prepared in.
  virtual std::int64_t begin(std::int64_t m, std::byte* prepared) const noexcept = 0;
  /// One part of x, float32 [m][stride]. Parts may be prepared by several threads.
  virtual void prepare(const float* x, std::int64_t stride, std::int64_t part,
                       std::byte* prepared) const noexcept = 0;
  /// Outputs [first, first + count) of all rows, in float32 and not rounded, to out [m][stride];
  /// `first` is a multiple of unit(), and so is `count` but at the end. Memory up to the next
  /// multiple is written too.
  virtual void compute(const std::byte* prepared, std::int64_t first, std::int64_t count,
                       float* out, std::int64_t stride) const noexcept = 0;
};

}  // namespace graft::nn
