#include "cli/calibration_trial.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <set>

#include "calibrating/calibrate.h"
#include "checkpoint/temporary_folder.h"
#include "cli/process_memory.h"

namespace graft::cli {
namespace {

/// The number in a module's path, "model.layers.3.mlp": "3"; the path of one without.
std::string layer_of(const std::string& path) {
  for (std::size_t begin = 0; begin < path.size();) {
    const auto end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (!part.empty() && std::all_of(part.begin(), part.end(),
                                     [](unsigned char c) { return std::isdigit(c); }))
      return part;
    begin = end + 1;
  }
  return path;
}

}  // namespace

Value to_value(const CalibrationTrial& trial) {
  Value out;
  out.set("groups_done", trial.groups_done);
  out.set("groups", trial.groups);
  out.set("seconds_spent", trial.seconds_spent);
  out.set("seconds", trial.seconds);
  out.set("peak_bytes", static_cast<std::int64_t>(trial.peak_bytes));
  return out;
}

CalibrationTrial try_calibration(const Host& host, const Checkpoint& checkpoint,
                                 LoadOptions options) {
  const bool keeps_heap = !return_large_memory(checkpoint.total_bytes());
  const Plan plan = host.plan(checkpoint, options);
  std::set<std::string> layers;
  std::uint64_t quantized_bytes = 0;
  for (const auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    layers.insert(layer_of(entry.spec.path));
    quantized_bytes += entry.bytes_after;
  }

  // As many as it takes until freed memory was returned twice: the heap grows between.
  const std::uint64_t tried =
      1 + std::max<std::uint64_t>(1, (2 * kBytesBetweenTrims * layers.size() + quantized_bytes - 1) /
                                         std::max<std::uint64_t>(1, quantized_bytes));

  CalibrationTrial trial;
  const TemporaryFolder state;
  options.state = {state.path(), {}};
  const auto start = std::chrono::steady_clock::now();
  const auto now = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double second_layer = 0;  // when it began: the first also warms up
  std::uint64_t kept_bytes = 0;
  bool enough = false;
  const auto shown = options.context.progress;
  options.context.progress = [&](std::string_view stage, std::uint64_t done, std::uint64_t total) {
    if (shown && !shown(stage, done, total)) return false;
    if (stage != "calibrate") return true;
    const std::uint64_t of_layer = (total + layers.size() - 1) / layers.size();
    trial.groups = static_cast<std::int64_t>(total);
    trial.groups_done = static_cast<std::int64_t>(done);
    if (done == 0) kept_bytes = memory_of_process("VmRSS");
    if (done == of_layer) second_layer = now();
    enough = done == tried * of_layer && done < total;
    if (enough)
      trial.seconds = second_layer + (now() - second_layer) /
                                         static_cast<double>(done - of_layer) *
                                         static_cast<double>(total - of_layer);
    return !enough;
  };
  try {
    host.load(checkpoint, options);
    trial.seconds = now();
  } catch (const Error& error) {
    if (!enough || error.kind() != ErrorKind::interrupted) throw;
  }
  trial.seconds_spent = now();
  auto peak = memory_of_process("VmHWM");
  // The gaps of a heap go on growing; by 9 to 20 % to the end of 30 layers, as measured.
  if (enough && keeps_heap) peak += peak / 8;
  // At the end all that was made is in memory, and of the work of a layer nothing.
  trial.peak_bytes = std::max(peak, kept_bytes + quantized_bytes);
  return trial;
}

}  // namespace graft::cli
