#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <iostream>
#include <memory>

#include "cli/program.h"
#include "graft/tensors.h"
#include "running/input_ids.h"

namespace graft::cli {
namespace {

struct Arguments {
  ModelToRun model;
  std::string input, output;
};

at::Tensor read_rows(const Checkpoint& input, const TensorInfo& info, const std::string& file) {
  if (info.dtype != Dtype::I64 || info.shape.size() != 2)
    throw Error(ErrorKind::usage, quote(info.name) + " cannot be used")
        .at(quote(file))
        .expected("[B, T] int64")
        .found(std::to_string(info.shape.size()) + " dimensions of " +
               std::string(name_of(info.dtype)));
  auto rows = at::empty(info.shape, at::kLong);
  input.read(info, rows.data_ptr());
  return rows;
}

Batch read_batch(const std::string& file) {
  const Checkpoint input = Checkpoint::open_file(file);
  Batch batch;
  for (const auto& info : input.tensors()) {
    if (info.name == "input_ids")
      batch.input_ids = read_rows(input, info, file);
    else if (info.name == "attention_mask")
      batch.attention_mask = read_rows(input, info, file);
    else if (info.name == "token_type_ids" || info.name == "position_ids" ||
             info.name == "inputs_embeds")
      throw Error(ErrorKind::usage, "graft forward does not take " + quote(info.name))
          .at(quote(file))
          .expected("input_ids and, for padded rows, attention_mask")
          .hint("leave it out");
  }
  if (!batch.input_ids.defined())
    throw Error(ErrorKind::usage, "the input has no tensor 'input_ids'").at(quote(file));
  if (batch.attention_mask.defined() && batch.attention_mask.sizes() != batch.input_ids.sizes())
    throw Error(ErrorKind::usage, "'attention_mask' cannot be used")
        .at(quote(file))
        .expected(c10::str(batch.input_ids.sizes()) + ", as input_ids")
        .found(c10::str(batch.attention_mask.sizes()));
  return batch;
}

void run(Program& program, const Arguments& given) {
  require_writable(given.output, {given.input}, {given.model.folder()});
  const Batch batch = read_batch(given.input);
  const auto loaded = given.model.load(program);
  require_in_vocabulary(*loaded.model,
                        {batch.input_ids.const_data_ptr<std::int64_t>(),
                         static_cast<std::size_t>(batch.input_ids.numel())});
  const c10::InferenceMode guard;
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
  verb->add_option("--input", given->input,
                   "safetensors file with input_ids [B, T] int64 and, for padded rows, "
                   "attention_mask")
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
