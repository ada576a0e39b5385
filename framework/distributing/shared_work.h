#pragma once

#include <cstdint>
#include <vector>

namespace at {
class Tensor;
}

namespace graft {

class Ranks;

/// While it lives, SharedWork of this thread is shared among `ranks`, which may be null: not shared.
class ShareAmong {
 public:
  explicit ShareAmong(Ranks* ranks);
  ShareAmong(const ShareAmong&) = delete;
  ShareAmong& operator=(const ShareAmong&) = delete;
  ~ShareAmong();

 private:
  Ranks* before_;
};

/// The items of [0, items) that this process is to do. All ranks come here with equal arguments, and
/// the result of an item does not depend on who does it.
class SharedWork {
 public:
  explicit SharedWork(std::int64_t items);

  std::int64_t first() const { return first_; }
  std::int64_t count() const { return last_ - first_; }
  /// Completes `rows`, contiguous, of which item i has filled [i * size, (i + 1) * size), the last
  /// one perhaps fewer.
  void complete(const at::Tensor& rows, std::int64_t size = 1) const;
  /// The same of several tensors with as many rows each, in one exchange.
  void complete(const std::vector<at::Tensor>& tensors, std::int64_t size = 1) const;

 private:
  Ranks* ranks_;
  std::int64_t items_, first_, last_;
};

}  // namespace graft
