#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <iostream>
#include <memory>

#include "cli/program.h"
#include "graft/tensors.h"

namespace graft::cli {
namespace {

struct Arguments {
  ModelToRun model;
  std::string input, output;
};

at::Tensor read_ids(const std::string& file) {
  const Checkpoint input = Checkpoint::open_file(file);
  const TensorInfo* info = input.find("input_ids");
  if (!info) throw Error(ErrorKind::usage, "the input has no tensor 'input_ids'").at(quote(file));
  if (info->dtype != Dtype::I64 || info->shape.size() != 2)
    throw Error(ErrorKind::usage, "'input_ids' cannot be used")
        .at(quote(file))
        .expected("[B, T] int64")
        .found(std::to_string(info->shape.size()) + " dimensions of " +
               std::string(name_of(info->dtype)));
  auto ids = at::empty(info->shape, at::kLong);
  input.read(*info, ids.data_ptr());
  return ids;
}

void run(Program& program, const Arguments& given) {
  const auto ids = read_ids(given.input);
  const auto loaded = given.model.load(program);
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = ids;
  const auto out = loaded.model->forward(batch).to(at::kCPU, at::kFloat).contiguous();
  const std::string name =
      loaded.model->output() == Model::Output::logits ? "logits" : "last_hidden_state";
  const auto held = std::make_shared<at::Tensor>(out);
  write_tensor_file(given.output, {{name, Dtype::F32, out.sizes().vec(), [held] {
                                      return std::shared_ptr<const void>(held,
                                                                         held->const_data_ptr());
                                    }}});
  if (program.globals.json) {
    Value result, shape(Value::Array{});
    for (const auto size : out.sizes()) shape.as_array().push_back(size);
    result.set("output", given.output);
    result.set("tensor", name);
    result.set("shape", std::move(shape));
    program.print_json(result);
  }
}

}  // namespace

void add_forward(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("forward", "Run token ids through a model and write its logits");
  given->model.add_to(*verb, program, with_methods);
  verb->add_option("--input", given->input, "safetensors file with input_ids [B, T] int64")
      ->required();
  verb->add_option("--output", given->output,
                   "safetensors file to write: logits or last_hidden_state, float32")
      ->required();
  verb->footer(
      "graft forward models/SmolLM2-135M-Instruct --input ids.safetensors --output "
      "logits.safetensors");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
