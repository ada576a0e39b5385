#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace graft::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  std::size_t bytes = 0;     ///< of memory
};

struct Devices {
  std::vector<DeviceInfo> list;
  /// Why there are none: no driver, none that it shows, or something wrong.
  std::string reason;
  bool wrong = false;  ///< a driver is there, but cannot be used
};

/// The devices that this process may use. Takes no memory on any. Any thread.
Devices find_devices();

}  // namespace graft::cuda
