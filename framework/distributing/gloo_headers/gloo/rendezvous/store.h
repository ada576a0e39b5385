#pragma once

// A stand-in: see ../context.h.

#include <chrono>
#include <string>
#include <vector>

namespace gloo::rendezvous {

/// The functions that ProcessGroupGloo::GlooStore overrides. Their order is not gloo's: nothing may
/// make, call or derive from a store through this header.
class Store {
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys,
                    const std::chrono::milliseconds& timeout) = 0;
};

}  // namespace gloo::rendezvous
