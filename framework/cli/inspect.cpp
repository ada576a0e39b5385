#include <cstdio>
#include <memory>

#include "cli/program.h"

namespace graft::cli {
namespace {

void run(Program& program, const std::string& argument) {
  const auto folder = find_model(argument);
  OpenOptions open;
  open.weights_optional = true;
  const Checkpoint checkpoint = Checkpoint::open(folder, open);
  LoadOptions options;
  options.context = program.context();
  const Plan plan = program.host().plan(checkpoint, options);
  const auto model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta));
  std::int64_t parameters = 0;
  for (const auto& parameter : model->parameters()) parameters += parameter.numel();
  std::uint64_t quantized_bytes = 0, taken = 0;
  for (const auto& entry : plan.entries)
    for (const auto& tensor : entry.tensors) {
      taken += tensor.bytes;
      if (entry.action == Action::quantize) quantized_bytes += tensor.bytes;
    }
  const double share =
      taken ? 100.0 * static_cast<double>(quantized_bytes) / static_cast<double>(taken) : 0;
  const std::string type = checkpoint.config().get_string("model_type", "");
  const Value* declared = quantization_config_of(checkpoint.config());

  if (program.globals.json) {
    Value result;
    result.set("model_type", type);
    result.set("parameters", parameters);
    result.set("shards", static_cast<std::int64_t>(checkpoint.shards().size()));
    result.set("bytes", static_cast<std::int64_t>(checkpoint.total_bytes()));
    result.set("dtype", std::string(dtype_word(plan.dtype)));
    result.set("declared", declared ? *declared : Value());
    result.set("quantized_modules", static_cast<std::int64_t>(plan.count(Action::quantize)));
    result.set("kept_modules", static_cast<std::int64_t>(plan.count(Action::keep)));
    result.set("quantized_bytes_percent", share);
    result.set("bits_per_weight", plan.bits_per_weight());
    const auto list = [](const std::vector<std::string>& items) {
      return Value(Value::Array(items.begin(), items.end()));
    };
    result.set("missing", list(plan.missing));
    result.set("mismatched", list(plan.mismatched));
    result.set("unexpected", list(plan.unexpected));
    result.set("notes", list(plan.notes));
    program.print_json(result);
    return;
  }
  std::printf("model      %s, %.1fM parameters, %s    %zu shard(s), %s\n", type.c_str(),
              static_cast<double>(parameters) / 1e6, std::string(dtype_word(plan.dtype)).c_str(),
              checkpoint.shards().size(), megabytes(checkpoint.total_bytes()).c_str());
  std::printf("declared   %s\n",
              declared ? (plan.method + " " + plan.settings).c_str() : "not quantized");
  std::printf("coverage   quantized %zu modules, %.1f %% of bytes | kept %zu modules\n",
              plan.count(Action::quantize), share, plan.count(Action::keep));
  const auto list = [](const char* title, const std::vector<std::string>& items) {
    std::printf("%-10s", title);
    if (items.empty()) std::printf(" none");
    for (std::size_t i = 0; i < items.size() && i < 6; ++i)
      std::printf("%s%s", i ? ", " : " ", items[i].c_str());
    if (items.size() > 6) std::printf(" and %zu more", items.size() - 6);
    std::printf("\n");
  };
  list("missing", plan.missing);
  list("wrong", plan.mismatched);
  list("unexpected", plan.unexpected);
  for (const auto& note : plan.notes) std::printf("note       %s\n", note.c_str());
  if (plan.count(Action::quantize)) {
    const auto first = std::find_if(plan.entries.begin(), plan.entries.end(),
                                    [](const auto& e) { return e.action == Action::quantize; });
    std::printf("claimed    %s from %s -> %s\n", plan.method.c_str(), first->plugin.c_str(),
                first->kernel.c_str());
  }
}

}  // namespace

void add_inspect(CLI::App& app, Program& program) {
  auto model = std::make_shared<std::string>();
  auto* verb = app.add_subcommand(
      "inspect", "What a model folder is: sizes, quantization, coverage, anomalies");
  verb->add_option("MODEL", *model, "Folder or cached org/name")->required();
  verb->callback([model, &program] { run(program, *model); });
}

}  // namespace graft::cli
