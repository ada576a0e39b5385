#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <map>
#include <memory>

#include "cli/program.h"
#include "graft/module_graph.h"
#include "graft/tensors.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, against;
};

at::Tensor read(const Checkpoint& checkpoint, const TensorInfo& info) {
  auto tensor = at::empty(info.shape, scalar_type(info.dtype));
  checkpoint.read(info, tensor.data_ptr());
  return tensor;
}

/// Floats that no model can use; the file's own scales, norms and weights alike.
std::vector<std::string> not_finite(const Checkpoint& checkpoint, const Context& context) {
  std::vector<std::string> found;
  std::uint64_t done = 0;
  for (const auto& info : checkpoint.tensors()) {
    if (is_float(info.dtype) && info.bytes > 0)
      if (!at::isfinite(read(checkpoint, info).to(at::kFloat)).all().item<bool>())
        found.push_back(quote(info.name));
    done += info.bytes;
    if (context.progress && !context.progress("reading", done, checkpoint.total_bytes()))
      throw Error(ErrorKind::interrupted, "interrupted");
  }
  return found;
}

/// Where the base keeps the weight of each module: an expert's may be a part of a larger tensor.
std::map<std::string, PlannedTensor> weights_of(const Host& host, const Checkpoint& base,
                                                const LoadedModel& loaded) {
  LoadOptions options;
  options.quantization_config = loaded.quantization_config;
  std::map<std::string, PlannedTensor> weights;
  for (const auto& entry : host.plan(base, options).entries)
    for (const auto& tensor : entry.tensors)
      if (tensor.name == "weight") weights.emplace(entry.spec.path, tensor);
  return weights;
}

void run(Program& program, const Arguments& given) {
  const c10::InferenceMode guard;
  const Checkpoint checkpoint = Checkpoint::open(find_model(given.model));
  LoadOptions options;
  options.context = program.context();
  const auto bad = not_finite(checkpoint, options.context);
  if (!given.against.empty()) options.structure = Checkpoint::open(find_model(given.against));
  auto loaded = program.host().load(checkpoint, options);
  Value result;
  result.set("tensors", static_cast<std::int64_t>(checkpoint.tensors().size()));
  result.set("quantized", static_cast<std::int64_t>(loaded.plan.count(Action::quantize)));
  result.set("unexpected",
             Value::Array(loaded.plan.unexpected.begin(), loaded.plan.unexpected.end()));
  result.set("not_finite", Value::Array(bad.begin(), bad.end()));
  Value::Array rows;
  double worst = 0;
  if (!given.against.empty()) {
    const Checkpoint& base = *options.structure;
    const auto dense_weights = weights_of(program.host(), base, loaded);
    for (const auto& entry : loaded.plan.entries) {
      if (entry.action != Action::quantize) continue;
      const auto [parent, name] = get_module_from_name(loaded.model, entry.spec.path);
      const auto* block =
          dynamic_cast<const nn::Block*>(parent->named_children().find(name)->get());
      const auto weight = entry.quantizer->dequantize(*block).to(at::kFloat);
      const auto found = dense_weights.find(entry.spec.path);
      if (found == dense_weights.end())
        throw Error(ErrorKind::model, "the base model has no weight for a quantized module")
            .at(entry.spec.path);
      const auto dense = read_planned(base, found->second).to(at::kFloat);
      if (dense.sizes() != weight.sizes())
        throw Error(ErrorKind::model, "the base model has another shape").at(entry.spec.path);
      const double error = ((weight - dense).norm() / dense.norm()).item<double>();
      worst = std::max(worst, error);
      Value row;
      row.set("path", entry.spec.path);
      row.set("relative_error", error);
      rows.push_back(std::move(row));
    }
    result.set("modules", rows);
  }
  if (program.globals.json) {
    program.print_json(result);
  } else {
    for (const auto& row : rows)
      std::printf("%-48s %.5f\n", row.at("path").as_string().c_str(),
                  row.at("relative_error").as_double());
    std::printf("%zu tensors, %zu quantized modules: %s\n", checkpoint.tensors().size(),
                loaded.plan.count(Action::quantize), bad.empty() ? "all well" : "not finite:");
    for (const auto& name : bad) std::printf("  %s\n", name.c_str());
    if (!rows.empty()) std::printf("worst relative error %.5f\n", worst);
  }
  if (!bad.empty())
    throw Error(ErrorKind::model, std::to_string(bad.size()) +
                                      " tensor(s) hold NaN or infinity, first " + bad.front())
        .at(quote(checkpoint.folder().string()));
}

}  // namespace

void add_verify(CLI::App& app, Program& program) {
  auto given = std::make_shared<Arguments>();
  auto* verb =
      app.add_subcommand("verify", "Check every tensor of a model, or measure it against its base");
  verb->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb->add_option("--against", given->against,
                   "The dense model it was made from: relative error per module");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
