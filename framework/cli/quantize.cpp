#include <chrono>
#include <iostream>
#include <memory>

#include "cli/program.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, output, dtype;
  std::uint64_t shard_bytes = WriteOptions{}.shard_bytes;
  bool overwrite = false, ignore_config = false;
  MethodOptions method;
};

void run(Program& program, const Arguments& given) {
  const auto start = std::chrono::steady_clock::now();
  LoadOptions options;
  options.quantization_config = given.method.settings();
  if (options.quantization_config.is_null())
    throw Error(ErrorKind::usage, "--method is missing")
        .hint("`graft quantize --help` lists the methods");
  options.dtype = parse_dtype(given.dtype);
  options.device = program.device();
  options.ignore_quantization_config = given.ignore_config;
  options.context = program.context();
  const auto folder = find_model(given.model);
  WriteOptions write;
  write.shard_bytes = given.shard_bytes;
  write.overwrite = given.overwrite;
  write.progress = [&program](std::uint64_t done, std::uint64_t total) {
    return program.context().progress("saving", done, total);
  };
  const Checkpoint checkpoint = Checkpoint::open(folder);
  if (quantization_config_of(checkpoint.config()) && !given.ignore_config)
    throw Error(ErrorKind::usage, "the model is quantized already")
        .at(quote((folder / "config.json").string()))
        .hint("quantize the dense model it was made from");
  { const FolderWriter refuses_early(given.output, write, {folder}); }
  const auto loaded = program.host().load(checkpoint, options);
  program.host().save(loaded, given.output, write);
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Plan& plan = loaded.plan;
  if (program.globals.json) {
    Value result;
    result.set("output", given.output);
    result.set("quantized", static_cast<std::int64_t>(plan.count(Action::quantize)));
    result.set("bytes_before", static_cast<std::int64_t>(plan.bytes_before()));
    result.set("bytes_after", static_cast<std::int64_t>(plan.bytes_after()));
    result.set("bits_per_weight", plan.bits_per_weight());
    result.set("seconds", took);
    program.print_json(result);
    return;
  }
  std::cout << "quantized " << plan.count(Action::quantize) << " modules (" << plan.settings
            << "), " << megabytes(plan.bytes_before()) << " -> " << megabytes(plan.bytes_after())
            << ", in " << seconds(took) << ": " << given.output << "\n";
}

}  // namespace

void add_quantize(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("quantize", "Quantize a dense model and save it");
  verb->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb->add_option("OUT", given->output, "Folder to make")->required();
  verb->add_option("--dtype", given->dtype,
                   "Of what is kept: float32, bfloat16 or float16; default as the model");
  verb->add_option("--shard-bytes", given->shard_bytes, "Most bytes in a weight file")
      ->capture_default_str();
  verb->add_flag("--overwrite", given->overwrite, "Replace OUT when it is a model folder");
  verb->add_flag("--ignore-quantization-config", given->ignore_config,
                 "Take the model for dense whatever its config says");
  if (with_methods) given->method.add_to(*verb, program.host());
  verb->footer("graft quantize models/SmolLM2-135M-Instruct models/quantized --method METHOD");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
