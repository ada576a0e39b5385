#include "graft/device_map.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <limits>

#include "graft/error.h"

namespace graft {
namespace {

constexpr const char* kDevices = "cpu, cuda, cuda:N, or the number of a CUDA device";

c10::Device device_from(const Value& value, const std::string& where) {
  if (value.is_int() && value.as_int() >= 0 &&
      value.as_int() <= std::numeric_limits<c10::DeviceIndex>::max())
    return {at::kCUDA, static_cast<c10::DeviceIndex>(value.as_int())};
  const std::string text = value.is_string() ? value.as_string() : to_json(value);
  if (text == "disk")
    throw Error(ErrorKind::usage, "parts of a model cannot stay on the disk")
        .at(where)
        .expected(kDevices)
        .hint("name cpu: what is there runs there, and takes no memory of a GPU");
  if (value.is_string()) {
    if (!text.empty() && std::all_of(text.begin(), text.end(),
                                     [](unsigned char c) { return std::isdigit(c) != 0; }))
      return device_from(Value("cuda:" + text), where);
    try {
      const c10::Device device(text);
      if (device.is_cuda() && !device.has_index()) return {at::kCUDA, 0};
      if (device.is_cpu() || device.is_cuda()) return device;
    } catch (const c10::Error&) {
    }
  }
  throw Error(ErrorKind::usage, "a device map has an unknown device")
      .at(where)
      .expected(kDevices)
      .found(quote(text));
}

std::uint64_t bytes_from(const Value& value, const std::string& where) {
  if (value.is_int() && value.as_int() >= 0) return static_cast<std::uint64_t>(value.as_int());
  const std::string text = value.is_string() ? value.as_string() : to_json(value);
  static constexpr std::pair<std::string_view, double> kUnits[] = {
      {"KiB", 1024.},  {"MiB", 1048576.}, {"GiB", 1073741824.}, {"TiB", 1099511627776.},
      {"KB", 1e3},     {"MB", 1e6},       {"GB", 1e9},          {"TB", 1e12},
  };
  double number = 0;
  const auto* end = text.data() + text.size();
  const auto [at, failed] = std::from_chars(text.data(), end, number);
  const std::string_view unit(at, static_cast<std::size_t>(end - at));
  if (value.is_string() && failed == std::errc{} && number >= 0 && number < 1e9)
    for (const auto& [name, factor] : kUnits)
      if (unit == name && number * factor < 0x1p63)
        return static_cast<std::uint64_t>(number * factor);
  throw Error(ErrorKind::usage, "max_memory has an unknown size")
      .at(where)
      .expected("bytes, or text as \"20GiB\" or \"500MB\"")
      .found(quote(text));
}

/// The length of `path` when it is `below` or a module above it.
std::optional<std::size_t> length_above(std::string_view path, std::string_view below) {
  const bool is_above = path.empty() || below == path ||
                        (below.starts_with(path) && below[path.size()] == '.');
  return is_above ? std::optional(path.size()) : std::nullopt;
}

}  // namespace

DeviceMap DeviceMap::from_value(const Value& value, const Value& max_memory) {
  DeviceMap out;
  const std::string word = value.is_string() ? value.as_string() : "";
  if (word == "auto" || word == "balanced")
    out.spread_ = Spread::balanced;
  else if (word == "sequential")
    out.spread_ = Spread::sequential;
  if (!max_memory.is_null()) {
    if (!out.spread_)
      throw Error(ErrorKind::usage, "max_memory has no effect where devices are named")
          .hint("give it with a device map \"auto\", \"balanced\" or \"sequential\"");
    if (!max_memory.is_object() || max_memory.as_object().empty())
      throw Error(ErrorKind::usage, "max_memory is no object of devices and sizes")
          .expected("{\"0\": \"20GiB\", \"cpu\": \"60GiB\"}")
          .found(quote(to_json(max_memory)));
    for (const auto& [name, size] : max_memory.as_object()) {
      const std::string where = "max_memory: " + quote(name);
      out.max_memory_.push_back({device_from(Value(name), where), bytes_from(size, where)});
    }
    // Faster devices first, as they are counted; the CPU takes what is left.
    std::stable_sort(out.max_memory_.begin(), out.max_memory_.end(), [](auto& a, auto& b) {
      return a.device.is_cpu() != b.device.is_cpu() ? b.device.is_cpu()
                                                    : a.device.index() < b.device.index();
    });
  }
  if (out.spread_) return out;
  out.places_.clear();
  if (!value.is_object()) {
    out.places_.push_back({"", device_from(value, "device map")});
    return out;
  }
  for (const auto& [path, device] : value.as_object())
    out.places_.push_back({path, device_from(device, "device map: " + quote(path))});
  if (out.places_.empty())
    throw Error(ErrorKind::usage, "the device map is empty")
        .expected("{\"\": \"cuda:0\"}, or a device for each part of the model");
  return out;
}

std::optional<c10::Device> DeviceMap::of(std::string_view path) const {
  const Place* best = nullptr;
  for (const auto& place : places_)
    if (length_above(place.path, path) && (!best || place.path.size() > best->path.size()))
      best = &place;
  return best ? std::optional(best->device) : std::nullopt;
}

std::vector<c10::Device> DeviceMap::devices() const {
  std::vector<c10::Device> out;
  for (const auto& place : places_)
    if (std::find(out.begin(), out.end(), place.device) == out.end()) out.push_back(place.device);
  return out;
}

bool DeviceMap::offloads() const {
  const auto all = devices();
  const auto on_cpu = std::count_if(all.begin(), all.end(), [](auto& d) { return d.is_cpu(); });
  return on_cpu > 0 && on_cpu < static_cast<std::ptrdiff_t>(all.size());
}

}  // namespace graft
