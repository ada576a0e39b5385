#include <cinttypes>
#include <cstdio>
#include <memory>
#include <set>

#include "cli/program.h"

namespace graft::cli {
namespace {

/// "lm_head (output head), 14 x mlp.gate (router)": kept matrices by the last words of their paths.
std::string kept_matrices(const Plan& plan) {
  std::vector<std::pair<std::string, std::size_t>> names;
  for (const auto& entry : plan.entries) {
    if (entry.action != Action::keep || entry.spec.in_features == 0) continue;
    std::string name;  // without the parts that are numbers
    for (std::size_t begin = 0; begin <= entry.spec.path.size();) {
      const auto end = std::min(entry.spec.path.find('.', begin), entry.spec.path.size());
      const std::string part = entry.spec.path.substr(begin, end - begin);
      name = part.find_first_not_of("0123456789") == std::string::npos ? "" : name + "." + part;
      begin = end + 1;
    }
    name = (name.empty() ? entry.spec.path : name.substr(1)) + " (" + entry.reason + ")";
    const auto known = std::find_if(names.begin(), names.end(),
                                    [&](const auto& other) { return other.first == name; });
    if (known == names.end())
      names.emplace_back(name, 1);
    else
      ++known->second;
  }
  std::string out;
  for (const auto& [name, count] : names)
    out += (out.empty() ? "" : ", ") + (count > 1 ? std::to_string(count) + " x " : "") + name;
  return out;
}

void print_lines(const char* title, const std::vector<std::string>& lines) {
  for (const auto& line : lines) std::printf("%-10s %s\n", title, printable(line).c_str());
}

void print_list(const char* title, const std::vector<std::string>& items) {
  constexpr std::size_t kShown = 6;
  std::printf("%-10s", title);
  if (items.empty()) std::printf(" none");
  for (std::size_t i = 0; i < items.size() && i < kShown; ++i)
    std::printf("%s%s", i ? ", " : " ", printable(items[i]).c_str());
  if (items.size() > kShown) std::printf(" and %zu more", items.size() - kShown);
  std::printf("\n");
}

void run(Program& program, const std::string& argument) {
  const auto folder = find_model(argument);
  OpenOptions open;
  open.weights_optional = true;
  const Checkpoint checkpoint = Checkpoint::open(folder, open);
  LoadOptions options;
  options.device = program.device();
  options.context = program.context();
  options.context.progress = {};  // it takes a moment only
  const Plan plan = program.host().inspect(checkpoint, options);
  program.terminal.finish_line();
  const auto model = build_model(checkpoint.config(), at::TensorOptions(at::kMeta));
  std::int64_t parameters = 0;
  std::set<std::string> aliases;
  for (const auto& tied : model->tied_tensors()) aliases.insert(tied.alias);
  for (const auto& parameter : model->named_parameters())
    if (!aliases.contains(parameter.key())) parameters += parameter.value().numel();
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
    result.set("settings", plan.settings);
    result.set("quantized_modules", static_cast<std::int64_t>(plan.count(Action::quantize)));
    result.set("kept_modules", static_cast<std::int64_t>(plan.count(Action::keep)));
    result.set("quantized_bytes_percent", share);
    result.set("bits_per_weight", plan.bits_per_weight());
    const auto list = [](const std::vector<std::string>& items) {
      return Value(Value::Array(items.begin(), items.end()));
    };
    result.set("detected", list(plan.detected));
    result.set("refusal", plan.refusal.empty() ? Value() : Value(plan.refusal));
    result.set("missing", list(plan.missing));
    result.set("mismatched", list(plan.mismatched));
    result.set("unexpected", list(plan.unexpected));
    result.set("notes", list(plan.notes));
    result.set("doubts", list(plan.doubts));
    program.print_json(result);
    return;
  }
  const auto layers = model->cache_layers()
                          ? static_cast<std::int64_t>(model->cache_layers())
                          : model->text_config().get_int("num_hidden_layers", 0);
  std::printf("model      %s, %" PRId64 " layers, %.1fM parameters, %s    %zu shard(s), %s\n",
              type.c_str(), layers, static_cast<double>(parameters) / 1e6,
              std::string(dtype_word(plan.dtype)).c_str(), checkpoint.shards().size(),
              megabytes(checkpoint.total_bytes()).c_str());
  std::printf("declared   %s\n",
              plan.method.empty()
                  ? "not quantized"
                  : (plan.method + " " + plan.settings +
                     (declared ? "    config.json" : "    a file beside config.json"))
                        .c_str());
  print_lines("detected", plan.detected);
  if (!plan.refusal.empty()) std::printf("detected   ! %s\n", printable(plan.refusal).c_str());
  const std::string kept = kept_matrices(plan);
  std::printf("coverage   quantized %zu modules, %.1f %% of bytes | kept %zu modules%s%s\n",
              plan.count(Action::quantize), share, plan.count(Action::keep),
              kept.empty() ? "" : ": ", kept.c_str());
  print_list("missing", plan.missing);
  print_list("wrong", plan.mismatched);
  print_list("unexpected", plan.unexpected);
  print_lines("note", plan.notes);
  print_lines("!", plan.doubts);
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
