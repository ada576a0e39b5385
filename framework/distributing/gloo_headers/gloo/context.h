#pragma once

// Stand-ins for the headers of gloo that LibTorch's ProcessGroupGloo.hpp includes and its packages
// do not have (README.md says why that is safe).

#include <chrono>

namespace gloo {

class Context {
 public:
  // Not virtual in gloo either: calls reach the functions that libtorch_cpu exports.
  std::chrono::milliseconds getTimeout() const;
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
