#pragma once

namespace graft {

/// While it lives, LibTorch works on one thread in the thread that made it, and the pool on as many
/// as before. LibTorch's own threads meet at a barrier after each operation, which on a machine
/// with other work costs more than they save, and some of its results depend on their number.
class OneTorchThread {
 public:
  OneTorchThread();
  OneTorchThread(const OneTorchThread&) = delete;
  OneTorchThread& operator=(const OneTorchThread&) = delete;
  ~OneTorchThread();

 private:
  int torch_before_, pool_before_;
};

}  // namespace graft
