#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graft/device_map.h"
#include "graft/nn/block.h"
#include "graft/plan.h"

namespace graft {

/// Paths of the parts that a device map places, in the order in which they are registered: every
/// layer, and every module outside of layers that has tensors.
std::vector<std::string> parts_of(const std::shared_ptr<nn::Block>& root);

/// The same parts on devices that `map` leaves open, by their bytes in `plan`. `serves` says which
/// devices may be used. Throws Error(usage) when they do not fit.
DeviceMap spread_parts(const DeviceMap& map, const std::shared_ptr<nn::Block>& root,
                       const Plan& plan,
                       const std::function<bool(const c10::Device&)>& serves);

/// Throws Error(usage) unless every part is on one device, and every path is that of a module.
void require_places(const DeviceMap& map, const std::shared_ptr<nn::Block>& root);

/// The plan that `make` makes for the devices of `map`. Where those are open they come out of a
/// first plan with all on `first`.
Plan plan_on(const DeviceMap& map, const std::shared_ptr<nn::Block>& root,
             const std::function<bool(const c10::Device&)>& serves,
             const std::function<Plan(const DeviceMap&)>& make);

}  // namespace graft
