#include "planning/placing.h"

#include <algorithm>

#include "applying/device.h"
#include "graft/error.h"
#include "graft/model.h"
#include "graft/module_graph.h"

namespace graft {
namespace {

bool is_at_or_below(const std::string& path, const std::string& above) {
  return above.empty() || path == above ||
         (path.starts_with(above) && path[above.size()] == '.');
}

bool has_tensors(const torch::nn::Module& module) {
  return !module.named_parameters(/*recurse=*/false).is_empty();
}

void add_parts(const std::string& path, const torch::nn::Module& module,
               std::vector<std::string>& parts) {
  const auto children = module.named_children();
  const bool is_list = class_name_of(module) == "ModuleList";
  // A module that has tensors needs its children beside it.
  if (!is_list && (children.is_empty() || has_tensors(module))) {
    parts.push_back(path);
    return;
  }
  for (const auto& child : children) {
    const std::string below = path.empty() ? child.key() : path + "." + child.key();
    if (is_list)
      parts.push_back(below);
    else
      add_parts(below, *child.value(), parts);
  }
}

std::uint64_t bytes_of(const std::string& part, const Plan& plan) {
  std::uint64_t bytes = 0;
  for (const auto& entry : plan.entries)
    if (entry.action != Action::restructure && is_at_or_below(entry.spec.path, part))
      bytes += entry.bytes_after;
  return bytes;
}

std::string gigabytes(std::uint64_t bytes) {
  std::string text = std::to_string(static_cast<double>(bytes) / 1e9);
  return text.substr(0, text.find('.') + 4) + " GB";
}

}  // namespace

std::vector<std::string> parts_of(const std::shared_ptr<nn::Block>& root) {
  std::vector<std::string> parts;
  add_parts("", *root, parts);
  return parts;
}

DeviceMap spread_parts(const DeviceMap& map, const std::shared_ptr<nn::Block>& root,
                       const Plan& plan,
                       const std::function<bool(const c10::Device&)>& serves) {
  auto memory = map.max_memory();
  if (memory.empty()) memory = free_memory();
  std::erase_if(memory, [&](const auto& one) { return !serves(one.device); });
  struct Part {
    std::string path;
    std::uint64_t bytes;
  };
  std::vector<Part> parts;
  std::uint64_t total = 0, largest = 0;
  for (auto& path : parts_of(root)) {
    const auto bytes = bytes_of(path, plan);
    total += bytes;
    largest = std::max(largest, bytes);
    parts.push_back({std::move(path), bytes});
  }
  const auto gpus = static_cast<std::uint64_t>(
      std::count_if(memory.begin(), memory.end(), [](auto& one) { return !one.device.is_cpu(); }));
  std::vector<std::uint64_t> share;
  for (const auto& one : memory) {
    const bool shares = *map.spread() == DeviceMap::Spread::balanced && !one.device.is_cpu() &&
                        share.size() + 1 < gpus;
    share.push_back(shares ? std::min(one.bytes, total / gpus + largest / 2) : one.bytes);
  }
  std::vector<DeviceMap::Place> places;
  std::size_t at = 0;
  std::uint64_t used = 0;
  for (const auto& part : parts) {
    while (at < memory.size() && (share[at] < used || part.bytes > share[at] - used)) {
      ++at;
      used = 0;
    }
    if (at == memory.size()) {
      std::string found;
      for (const auto& one : memory)
        found += (found.empty() ? "" : ", ") + one.device.str() + " " + gigabytes(one.bytes);
      throw Error(ErrorKind::usage, "the model does not fit into the memory it may use")
          .at(part.path)
          .expected(gigabytes(total) + " in pieces of up to " + gigabytes(largest))
          .found(found.empty() ? "no device" : found)
          .hint("allow more with max_memory, or the CPU beside the GPUs");
    }
    used += part.bytes;
    places.push_back({part.path, memory[at].device});
  }
  // What is one tensor stays one.
  if (const auto* model = dynamic_cast<const Model*>(root.get()))
    for (const auto& tied : model->tied_tensors())
      for (auto& place : places)
        if (is_at_or_below(tied.alias, place.path))
          place.device = DeviceMap(places).of(tied.owner).value_or(place.device);
  const bool one = std::all_of(places.begin(), places.end(),
                               [&](auto& place) { return place.device == places[0].device; });
  return one && !places.empty() ? DeviceMap(places[0].device) : DeviceMap(std::move(places));
}

void require_places(const DeviceMap& map, const std::shared_ptr<nn::Block>& root) {
  const auto parts = parts_of(root);
  for (const auto& place : map.places()) {
    if (place.path.empty()) continue;
    if (std::any_of(parts.begin(), parts.end(), [&](const std::string& part) {
          return is_at_or_below(part, place.path);
        }))
      continue;
    const auto part = std::find_if(parts.begin(), parts.end(), [&](const std::string& one) {
      return is_at_or_below(place.path, one);
    });
    if (part != parts.end()) {
      if (map.of(*part) == place.device) continue;
      throw Error(ErrorKind::usage, "a device map may not divide what runs in one piece")
          .at("device map: " + quote(place.path))
          .expected("a device for all of " + quote(*part));
    }
    const auto near = nearest_names(place.path, parts);
    Error error(ErrorKind::usage, "the device map names a module that the model does not have");
    error.at("device map: " + quote(place.path));
    if (!near.empty()) error.hint("did you mean " + near + "?");
    throw error;
  }
  for (const auto& part : parts)
    if (!map.of(part))
      throw Error(ErrorKind::usage, "the device map has no device for a part of the model")
          .at(part)
          .hint("name one for it, or with \"\" one for all that is not named");
}

Plan plan_on(const DeviceMap& map, const std::shared_ptr<nn::Block>& root,
             const std::function<bool(const c10::Device&)>& serves,
             const std::function<Plan(const DeviceMap&)>& make) {
  if (!map.spread()) {
    require_places(map, root);
    return make(map);
  }
  const DeviceMap first(serves(at::kCUDA) ? at::kCUDA : at::kCPU);
  return make(spread_parts(map, root, make(first), serves));
}

}  // namespace graft
