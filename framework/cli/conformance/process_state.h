#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace graft::cli {

/// What belongs to the whole process and is none of a plugin's business.
struct ProcessState {
  std::map<std::string, std::string> values;  ///< "the locale" -> "C"
  at::Tensor generator;                       ///< of random numbers

  static ProcessState now();
  /// What differs in `later`, as sentences.
  std::vector<std::string> changes(const ProcessState& later) const;
};

/// Starts the threads that graft itself starts, so that others can be told from them.
void start_own_threads();

/// While it lives, tensors on the CPU have guard words around them.
class GuardedMemory {
 public:
  GuardedMemory();
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  /// Whether a guard word of a tensor that was freed since was written over.
  static bool damaged();
  /// Bytes that were asked for.
  static std::uint64_t allocated();
};

}  // namespace graft::cli
