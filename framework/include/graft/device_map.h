#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/export.h"
#include "graft/value.h"

namespace graft {

/// Where the parts of a model go, as Transformers' device_map says it. A part is a layer, or a
/// module outside of all layers. It is on one device, where its weights are and what it computes is
/// computed; the hidden states go from device to device between parts. A plain value.
class GRAFT_API DeviceMap {
 public:
  /// How parts are spread over devices where none is named.
  enum class Spread {
    balanced,    ///< CUDA devices get about equal shares; what does not fit goes to the CPU
    sequential,  ///< the first CUDA device is filled, then the next, then the CPU
  };
  /// Memory that weights may take.
  struct Memory {
    c10::Device device;
    std::uint64_t bytes;
  };
  struct Place {
    std::string path;  ///< of a module, with all that is below it; "" is the model
    c10::Device device;
  };

  /// All of a model on one device.
  DeviceMap(const c10::Device& device = at::kCPU) : places_{{"", device}} {}
  /// With these places: for a module the longest path counts.
  explicit DeviceMap(std::vector<Place> places) : places_(std::move(places)) {}

  /// "auto" or "balanced", "sequential", the name of a device, or an object of paths and devices. A
  /// device is "cpu", "cuda", "cuda:1", or the number of a CUDA device. `max_memory` belongs to a
  /// spread: an object of devices and bytes, numbers or text as "20GiB" or "500MB"; what it does
  /// not name is not used. Without one, nine tenths of what is free on each CUDA device, and all
  /// else on the CPU. Throws Error(usage).
  static DeviceMap from_value(const Value& value, const Value& max_memory = {});

  /// How to spread the parts, while no place is decided.
  const std::optional<Spread>& spread() const { return spread_; }
  /// What the spread may use; empty: what is free.
  const std::vector<Memory>& max_memory() const { return max_memory_; }

  const std::vector<Place>& places() const { return places_; }
  /// std::nullopt: nothing says where a module of this path goes.
  std::optional<c10::Device> of(std::string_view path) const;
  /// Each device once, in the order of the places.
  std::vector<c10::Device> devices() const;
  /// Whether parts are on the CPU and others are not.
  bool offloads() const;

 private:
  std::vector<Place> places_;
  std::optional<Spread> spread_;
  std::vector<Memory> max_memory_;
};

}  // namespace graft
