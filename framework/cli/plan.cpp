#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>

#include "cli/calibration_trial.h"
#include "cli/program.h"
#include "cli/quantize_report.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, dtype;
  MethodOptions method;
  bool trial = false;
  CalibrationArguments calibration;
};

CalibrationTrial try_it(Program& program, const Checkpoint& checkpoint, LoadOptions options,
                        const CalibrationArguments& calibration) {
  QuantizeJob job;
  calibration.put_into(job);
  const JobTexts texts = read_texts(program, checkpoint, options, job);
  if (!texts.calibration)
    throw Error(ErrorKind::usage, "there is nothing to try: no text is calibrated with")
        .at("--trial")
        .hint("name a --method that calibrates, or give --calibration FILE");
  options.calibration = texts.calibration->ids;
  options.recipe = job.recipe;
  options.all_experts = job.all_experts;
  options.polish_steps = job.polish_steps;
  options.search_by_block = job.search_by_block;
  return try_calibration(program.host(), checkpoint, options);
}

/// What lies where, when there is more than one device.
void print_devices(const Plan& plan) {
  const auto devices = plan.devices.devices();
  if (devices.size() < 2) return;
  for (const auto& device : devices) {
    std::vector<const PlanEntry*> there;
    std::uint64_t bytes = 0;
    for (const auto& entry : plan.entries)
      if (entry.spec.device == device && entry.action != Action::restructure) {
        there.push_back(&entry);
        bytes += entry.bytes_after;
      }
    if (there.empty()) continue;
    std::printf("%-6s %s in %zu modules, %s to %s\n", device.str().c_str(),
                megabytes(bytes).c_str(), there.size(), printable(there.front()->spec.path).c_str(),
                printable(there.back()->spec.path).c_str());
  }
}

void print(const Plan& plan) {
  std::size_t number = 0, kept = 0;
  const std::size_t all = plan.entries.size();
  for (const auto& entry : plan.entries) {
    ++number;
    if (entry.action == Action::keep) {
      ++kept;
      continue;
    }
    std::printf("[%4zu/%zu] %-44s %lldx%lld  %s -> %s  %s  %s  %s\n", number, all,
                printable(entry.spec.path).c_str(),
                static_cast<long long>(entry.spec.out_features),
                static_cast<long long>(entry.spec.in_features),
                megabytes(entry.bytes_before).c_str(), megabytes(entry.bytes_after).c_str(),
                entry.replacement.c_str(), entry.settings.c_str(), entry.kernel.c_str());
  }
  std::printf("size   %s -> %s", megabytes(plan.bytes_before()).c_str(),
              megabytes(plan.bytes_after()).c_str());
  if (plan.bits_per_weight() > 0)
    std::printf("    %.2f bits a weight where quantized", plan.bits_per_weight());
  std::printf("\n");
  print_devices(plan);
  std::printf("kept   %zu modules", kept);
  std::size_t shown = 0;
  for (const auto& entry : plan.entries)
    if (entry.action == Action::keep && entry.spec.in_features && shown++ < 8)
      std::printf("%s%s (%s)", shown == 1 ? ": " : ", ", printable(entry.spec.path).c_str(),
                  printable(entry.reason).c_str());
  std::printf("\n");
  const auto list = [](const char* title, const std::vector<std::string>& items) {
    if (items.empty()) return;
    std::printf("%s %zu:", title, items.size());
    for (std::size_t i = 0; i < items.size() && i < 8; ++i) std::printf(" %s", printable(items[i]).c_str());
    std::printf("%s\n", items.size() > 8 ? " ..." : "");
  };
  list("missing", plan.missing);
  list("wrong", plan.mismatched);
  list("unexpected", plan.unexpected);
  if (!plan.unloaded.empty())
    std::printf("not loaded %zu: %s (%s)%s\n", plan.unloaded.size(),
                printable(quote(plan.unloaded.front().source)).c_str(), plan.unloaded.front().reason.c_str(),
                plan.unloaded.size() > 1 ? " ..." : "");
  list("unmatched", plan.unmatched);
  for (const auto& note : plan.notes) std::printf("note   %s\n", printable(note).c_str());
}

void run(Program& program, const Arguments& given) {
  LoadOptions options;
  options.quantization_config = given.method.settings();
  options.dtype = parse_dtype(given.dtype);
  options.device = program.device();
  options.context = program.context();
  OpenOptions open;
  open.weights_optional = true;
  const auto folder = find_model(given.model);
  const Plan plan = program.host().plan(Checkpoint::open(folder, open), options);
  std::optional<CalibrationTrial> trial;
  if (given.trial && plan.missing.empty())
    trial = try_it(program, Checkpoint::open(folder), options, given.calibration);
  if (program.globals.json) {
    Value value = plan.to_value();
    if (trial) value.set("trial", to_value(*trial));
    program.print_json(value);
  } else {
    print(plan);
    if (trial)
      std::printf("trial  %lld of %lld groups in %s; all of it about %s, peak memory about %s\n",
                  static_cast<long long>(trial->groups_done),
                  static_cast<long long>(trial->groups), seconds(trial->seconds_spent).c_str(),
                  seconds(trial->seconds).c_str(), megabytes(trial->peak_bytes).c_str());
  }
  plan.check(program.globals.strict);
}

}  // namespace

void add_plan(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("plan", "Show the whole conversion without reading a weight");
  verb->add_option("MODEL", given->model, "Folder (config.json alone is enough) or cached org/name")
      ->required();
  verb->add_option("--dtype", given->dtype,
                   "Of what is kept: float32, bfloat16 or float16; default as the model");
  auto* trial = verb->add_flag("--trial", given->trial,
                               "Quantize the first layers to tell how long all of it takes, "
                               "and in how much memory; reads their weights");
  given->calibration.add_to(*verb);
  for (const char* name :
       {"--calibration", "--samples", "--seq-len", "--recipe", "--polish", "--search-by-block",
        "--all-experts"})
    verb->get_option(name)->needs(trial);
  if (with_methods) given->method.add_to(*verb, program.host());
  verb->footer("graft plan models/SmolLM2-135M-Instruct --method METHOD");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
