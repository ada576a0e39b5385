#pragma once

#include <ATen/Parallel.h>

namespace graft {

/// While it lives, LibTorch and the pool have this number of threads.
class TorchThreads {
 public:
  explicit TorchThreads(int number) : before_(at::get_num_threads()) {
    at::set_num_threads(number);
  }
  TorchThreads(const TorchThreads&) = delete;
  TorchThreads& operator=(const TorchThreads&) = delete;
  ~TorchThreads() { at::set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace graft
