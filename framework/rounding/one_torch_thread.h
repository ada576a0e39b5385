#pragma once

#include <ATen/Parallel.h>

namespace graft {

/// While it lives, LibTorch works on one thread. Its own threads meet at a barrier after each
/// operation, which on a machine with other work costs more than they save, and some of its results
/// depend on their number. For the thread that starts jobs.
class OneTorchThread {
 public:
  OneTorchThread() : before_(at::get_num_threads()) {
    if (before_ != 1) at::set_num_threads(1);
  }
  OneTorchThread(const OneTorchThread&) = delete;
  OneTorchThread& operator=(const OneTorchThread&) = delete;
  ~OneTorchThread() {
    if (before_ != 1) at::set_num_threads(before_);
  }

 private:
  int before_;
};

}  // namespace graft
