#include "calibrating/job_description.h"

#include <ATen/Version.h>
#include <torch/version.h>

#include <algorithm>
#include <set>
#include <string>
#include <system_error>

#include "calibrating/job_file.h"
#include "checkpoint/input_file.h"
#include "checkpoint/safetensors_header.h"
#include "graft/activations.h"
#include "graft/calibration.h"
#include "graft/error.h"
#include "graft/tensors.h"
#include "kernels/cpu_level.h"
#include "plugins/call.h"

namespace graft {

namespace fs = std::filesystem;

namespace {

/// A path as JSON and people read it, whatever bytes it has.
std::string plain(const fs::path& path) {
  constexpr std::size_t kLongest = 1u << 16;
  const std::string quoted = quote(path.string(), kLongest);
  return quoted.substr(1, quoted.size() - 2);
}

Value describe_weights(const Checkpoint& checkpoint) {
  Value out(Value::Object{});
  for (const auto& path : checkpoint.shards()) {
    const InputFile file(path);
    std::string header(std::min<std::uint64_t>(64, file.size()), '\0');
    file.read(0, header.size(), header.data());
    header.resize(kLengthBytes + safetensors_header_length(header, file.size()));
    file.read(0, header.size(), header.data());
    Value row;
    row.set("bytes", static_cast<std::int64_t>(file.size()));
    row.set("modified", file.modified());
    row.set("header", checksum(header));
    out.set(plain(path.filename()), std::move(row));
  }
  return out;
}

/// Rules decide the plan, so it says what they said: with all of a module's settings, of which the
/// line for people has some only.
std::string describe_plan(const Plan& plan) {
  std::string text;
  for (const auto& entry : plan.entries) {
    if (entry.action == Action::keep) continue;
    text += entry.spec.path + '\0' + entry.plugin + '\0' + entry.replacement + '\0';
    if (entry.action == Action::quantize)
      text += call_plugin(entry.plugin, entry.spec.path,
                          [&] { return to_json(entry.quantizer->describe(*entry.config)); });
    text += '\n';
  }
  return std::to_string(plan.count(Action::quantize)) + " modules quantized, checksum " +
         checksum(text);
}

}  // namespace

Value describe_job(const Checkpoint& checkpoint, const Plan& plan, const Value& settings,
                   const Plugins& plugins, const LoadOptions& options) {
  const at::Tensor& ids = options.calibration;
  Value versions(Value::Object{});
  std::set<std::string> used{plan.plugin};
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize) used.insert(entry.plugin);
  for (const auto* library : plugins.libraries())
    if (used.contains(std::string(library->id())))
      versions.set(library->id(), std::string(library->version()));
  const auto flat = ids.contiguous();
  const std::string_view bytes(static_cast<const char*>(flat.const_data_ptr()), flat.nbytes());
  Value text;
  text.set("shape", shape_text(ids.sizes().vec()));
  text.set("ids", checksum(bytes));
  Value job;
  job.set("graft", GRAFT_VERSION);
  job.set("libtorch", TORCH_VERSION);
  job.set("kernels", std::string(kernels::name_of(kernels::cpu_level())) + ", LibTorch's " +
                         at::get_cpu_capability());
  job.set("activations", static_cast<std::int64_t>(activations().mode()));
  job.set("plugins", std::move(versions));
  std::error_code code;
  job.set("model", plain(fs::weakly_canonical(checkpoint.folder(), code)));
  job.set("config.json", checkpoint.config());
  job.set("weights", describe_weights(checkpoint));
  job.set("dtype", std::string(dtype_word(plan.dtype)));
  job.set("settings", settings);
  job.set("recipe", std::string(word_of(options.recipe)));
  job.set("all_experts", options.all_experts);
  job.set("polish_steps", options.polish_steps);
  job.set("search_by_block", options.search_by_block);
  job.set("plan", describe_plan(plan));
  job.set("calibration", std::move(text));
  return job;
}

}  // namespace graft
