#include "cuda/product.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "cuda/stream_product.h"
#include "cuda/wgmma_product.h"

namespace graft::cuda {
namespace {

constexpr int kMostDevices = 64;

struct Device {
  DeviceLimits limits;
  bool has_wgmma = false;
};

/// Of the current device, asked for once a device.
cudaError_t current_device(Device& out) {
  struct Entry {
    std::atomic<bool> known{false};
    Device device;
  };
  static std::array<Entry, kMostDevices> entries;
  int index = 0;
  if (const auto error = cudaGetDevice(&index); error != cudaSuccess) return error;
  if (index >= kMostDevices) return cudaErrorInvalidDevice;
  Entry& entry = entries[static_cast<std::size_t>(index)];
  if (entry.known.load(std::memory_order_acquire)) {
    out = entry.device;
    return cudaSuccess;
  }
  int processors = 0, shared = 0, major = 0, minor = 0;
  for (const auto& [to, what] : {std::pair{&processors, cudaDevAttrMultiProcessorCount},
                                 {&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                                 {&major, cudaDevAttrComputeCapabilityMajor},
                                 {&minor, cudaDevAttrComputeCapabilityMinor}})
    if (const auto error = cudaDeviceGetAttribute(to, what, index); error != cudaSuccess)
      return error;
  out.limits = {processors, static_cast<std::size_t>(shared), major >= 9};
  out.has_wgmma = major == 9;
  // Two threads that get here at once would both write the same.
  static std::atomic_flag writing = ATOMIC_FLAG_INIT;
  if (!writing.test_and_set()) {
    entry.device = out;
    entry.known.store(true, std::memory_order_release);
    writing.clear();
  }
  return cudaSuccess;
}

constexpr int kStreamAlone = 16;  ///< rows up to which streaming beats wgmma

bool is_valid(const ProductArgs& args) {
  const auto& shape = args.weight.shape;
  return fits_fragments(shape.n, shape.k, shape.group) && args.m >= 0 && args.m <= INT32_MAX &&
         args.x_stride % 8 == 0 && args.y_stride % 2 == 0 && args.workspace;
}

}  // namespace

std::size_t workspace_bytes() {
  Device device;
  if (current_device(device) != cudaSuccess) return 0;
  const auto ranges = static_cast<std::size_t>(device.limits.processors);
  return 4096 + ranges * sizeof(float) * std::max(kStreamPartial, kWgmmaPartial);
}

std::int64_t most_rows(const Fragments& weight) {
  Device device;
  if (current_device(device) != cudaSuccess) return 0;
  if (weight.shape.kind == CodeKind::int4 && device.has_wgmma) return INT32_MAX;
  return 2 * kMostStreamRows;
}

cudaError_t multiply(const ProductArgs& args, cudaStream_t stream) {
  return multiply_by(Way::automatic, 0, args, stream);
}

cudaError_t multiply_by(Way way, int variant, const ProductArgs& args, cudaStream_t stream) {
  const auto& shape = args.weight.shape;
  if (!is_valid(args)) return cudaErrorInvalidValue;
  if (args.m == 0) return cudaSuccess;
  Device device;
  if (const auto error = current_device(device); error != cudaSuccess) return error;
  const bool can_wgmma = shape.kind == CodeKind::int4 && device.has_wgmma;
  if (way == Way::wgmma || (way == Way::automatic && can_wgmma && args.m > kStreamAlone)) {
    if (!can_wgmma) return cudaErrorNotSupported;
    const auto plan = variant == 0 ? plan_wgmma(shape, args.m, device.limits)
                                   : plan_wgmma(shape, args.m, device.limits, variant / 1000 % 10,
                                                variant % 1000, variant / 10000);
    return multiply_wgmma(plan, args, stream);
  }
  ProductArgs part = args;
  for (std::int64_t done = 0; done < args.m; done += kMostStreamRows) {
    part.m = std::min<std::int64_t>(kMostStreamRows, args.m - done);
    part.x = static_cast<const char*>(args.x) + done * args.x_stride * 2;
    part.y = static_cast<char*>(args.y) + done * args.y_stride * 2;
    const auto plan = variant == 0
                          ? plan_stream(shape, part.m, device.limits)
                          : plan_stream(shape, part.m, device.limits, variant % 10, variant > 10);
    if (const auto error = multiply_stream(plan, part, stream); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t multiply_grouped(const ProductArgs& all, std::span<const ProductSegment> segments,
                             cudaStream_t stream) {
  if (!is_valid(all)) return cudaErrorInvalidValue;
  for (const auto& s : segments)
    if (s.first < 0 || s.rows < 0 || s.rows > all.m - s.first) return cudaErrorInvalidValue;
  Device device;
  if (const auto error = current_device(device); error != cudaSuccess) return error;
  for (const auto& launch : launches_of(all.weight.shape, segments)) {
    const auto plan = plan_stream(all.weight.shape, launch.m, device.limits,
                                  static_cast<int>(launch.segments.size()));
    if (const auto error = multiply_stream(plan, all, launch.segments, stream);
        error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

}  // namespace graft::cuda
