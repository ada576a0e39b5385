#include <ATen/Parallel.h>
#include <torch/version.h>

#include <cstdio>
#include <fstream>
#include <set>

#include "cli/program.h"
#if defined(GRAFT_HAS_CUDA)
#include "cuda/device.h"
#endif
#include "kernels/cpu_level.h"
#include "registry/registry.h"

namespace graft::cli {
namespace {

struct Line {
  std::string topic, text, fix;  ///< fix: empty when all is well
};

/// Two OpenMP runtimes in one process slow each other down and may deadlock.
Line openmp() {
  std::set<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const auto slash = line.rfind('/');
    if (slash == std::string::npos) continue;
    const std::string name = line.substr(slash + 1);
    for (const char* runtime : {"libgomp", "libiomp", "libomp"})
      if (name.starts_with(runtime)) found.insert(name);
  }
  std::string list;
  for (const auto& name : found) list += (list.empty() ? "" : ", ") + name;
  return {"openmp", list.empty() ? "none" : list,
          found.size() > 1 ? "build graft with the compiler's runtime that LibTorch brings, so "
                             "that only one is loaded"
          : found.empty()  ? "LibTorch computes with one thread: link OpenMP"
                           : ""};
}

void add_cuda(std::vector<Line>& lines) {
#if defined(GRAFT_HAS_CUDA)
  const auto devices = cuda::find_devices();
  for (const auto& device : devices.list) {
    char text[96];
    std::snprintf(text, sizeof text, ", compute capability %d.%d, %.1f GiB", device.major,
                  device.minor, static_cast<double>(device.bytes) / (1 << 30));
    lines.push_back({"cuda", device.name + text, ""});
  }
  if (devices.list.empty())
    lines.push_back({"cuda", devices.reason,
                     devices.wrong ? "install a driver that this CUDA run time can use" : ""});
#else
  lines.push_back({"cuda", "not in this build", ""});
#endif
}

void run(Program& program) {
  std::vector<Line> lines;
  lines.push_back({"graft", GRAFT_VERSION, ""});
  lines.push_back({"torch", TORCH_VERSION, ""});
  lines.push_back({"cpu",
                   std::string(kernels::name_of(kernels::cpu_level())) + ", " +
                       std::to_string(at::get_num_threads()) + " threads",
                   ""});
  add_cuda(lines);
  lines.push_back(openmp());
  for (const auto& verdict : program.host().plugins().verdicts())
    lines.push_back(
        {"plugin",
         (verdict.id.empty() ? quote(verdict.file.string()) : verdict.id + " " + verdict.version),
         verdict.loaded ? "" : verdict.reason});
  if (program.host().plugins().libraries().empty())
    lines.push_back(
        {"plugin", "none loaded", "name a folder with --plugin-path or GRAFT_PLUGIN_PATH"});
  for (const auto& note : program.host().registry().notes())
    lines.push_back({"registry", note, "correct the file it names"});
  if (program.globals.json) {
    Value::Array rows;
    for (const auto& line : lines) {
      Value row;
      row.set("topic", line.topic);
      row.set("text", line.text);
      row.set("ok", line.fix.empty());
      if (!line.fix.empty()) row.set("fix", line.fix);
      rows.push_back(std::move(row));
    }
    program.print_json(rows);
    return;
  }
  for (const auto& line : lines)
    std::printf("%-9s %-3s %s%s%s\n", line.topic.c_str(), line.fix.empty() ? "ok" : "!",
                line.text.c_str(), line.fix.empty() ? "" : ": ", line.fix.c_str());
}

}  // namespace

void add_doctor(CLI::App& app, Program& program) {
  auto* verb = app.add_subcommand(
      "doctor", "What this installation has, one line each, with the fix for what is wrong");
  verb->callback([&program] { run(program); });
}

}  // namespace graft::cli
