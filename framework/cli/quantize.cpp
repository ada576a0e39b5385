#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>

#include "cli/program.h"
#include "graft/quantizer.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, output, dtype;
  std::uint64_t shard_bytes = WriteOptions{}.shard_bytes;
  bool overwrite = false, ignore_config = false;
  std::string calibration;
  CalibrationSize size;
  MethodOptions method;
};

/// The ids of --calibration FILE, or of graft's own text where the method cannot do without.
at::Tensor calibration_ids(Program& program, const Checkpoint& checkpoint,
                           const LoadOptions& options, const Arguments& given) {
  std::filesystem::path file = given.calibration;
  if (file.empty()) {
    const Plan plan = program.host().plan(checkpoint, options);
    const bool needed = std::any_of(plan.entries.begin(), plan.entries.end(), [](const auto& entry) {
      return entry.action == Action::quantize &&
             entry.quantizer->calibration(*entry.config) == CalibrationUse::required;
    });
    if (!needed) return {};
    file = default_calibration_file();
    program.context().say(LogLevel::info, "calibrate",
                          "with the text that comes with graft; --calibration FILE takes another");
  }
  auto ids = read_calibration_file(checkpoint.folder(), file, given.size);
  program.context().say(LogLevel::info, "calibrate",
                        std::to_string(ids.size(0)) + " samples of " +
                            std::to_string(ids.size(1)) + " tokens from " + file.string());
  return ids;
}

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
  options.calibration = calibration_ids(program, checkpoint, options, given);
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
    result.set("calibration",
               loaded.calibration.empty() ? Value() : to_value(loaded.calibration));
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
  verb->add_option("--calibration", given->calibration,
                   "Text to quantize by: plain, .jsonl with \"text\", or .safetensors with "
                   "input_ids; default where a method needs one: graft's own");
  verb->add_option("--samples", given->size.samples, "Of calibration text, at most")
      ->capture_default_str()
      ->check(at_least_one());
  verb->add_option("--seq-len", given->size.length, "Tokens of a sample")
      ->capture_default_str()
      ->check(at_least_one());
  if (with_methods) given->method.add_to(*verb, program.host());
  verb->footer("graft quantize models/SmolLM2-135M-Instruct models/quantized --method METHOD");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
