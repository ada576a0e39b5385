#include <memory>

#include "cli/program.h"
#include "cli/quantize_job.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string model, output, eval;
  QuantizeJob job;
  CalibrationArguments calibration;
  MethodOptions method;
};

void run(Program& program, Arguments& given) {
  QuantizeJob& job = given.job;
  const bool chooses = given.method.take("--bits", "auto");
  if (chooses && !job.bits_per_weight)
    throw Error(ErrorKind::usage, "--bits auto needs --target-bpw")
        .hint("say how many bits a weight may take, as --target-bpw 4");
  job.settings = given.method.settings();
  if (job.settings.is_null())
    throw Error(ErrorKind::usage, "--method is missing")
        .hint("`graft quantize --help` lists the methods");
  if (const Value* bits = job.settings.find("bits"); bits && job.bits_per_weight)
    throw Error(ErrorKind::usage, "--bits and --target-bpw contradict each other")
        .expected("--bits auto, or none")
        .found(to_json(*bits));
  job.model = std::filesystem::absolute(find_model(given.model));
  given.calibration.put_into(job);
  if (!given.eval.empty()) job.eval = std::filesystem::absolute(given.eval);
  run(program, job, given.output, /*resumes=*/false);
}

}  // namespace

void add_quantize(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("quantize", "Quantize a dense model and save it");
  verb->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb->add_option("OUT", given->output, "Folder to make")->required();
  verb->add_option("--dtype", given->job.dtype,
                   "Of what is kept: float32, bfloat16 or float16; default as the model");
  verb->add_option("--shard-bytes", given->job.shard_bytes, "Most bytes in a weight file")
      ->capture_default_str();
  verb->add_flag("--overwrite", given->job.overwrite,
                 "Replace OUT when it is a model folder, and discard an interrupted job for it");
  verb->add_flag("--ignore-quantization-config", given->job.ignore_config,
                 "Take the model for dense whatever its config says");
  given->calibration.add_to(*verb);
  verb->add_option("--eval", given->eval,
                   "Text to compare the quantized model with the dense one on: KL divergence, "
                   "perplexity, error of each layer");
  verb->add_option(
          "--target-bpw", given->job.bits_per_weight,
          "Choose the bits of each group of modules by what they lose, so that together they "
          "take at most this many a weight, scales included; as --bits auto")
      ->check(at_least_zero());
  verb->add_option("--max-kl", given->job.max_kl,
                   "Make nothing when the mean KL divergence is above this many nats a token; "
                   "without --eval measured on calibration text that calibration did not use")
      ->check(at_least_zero());
  verb->add_option("--max-fallback", given->job.max_fallback,
                   "Make nothing when more modules than this had no usable statistics")
      ->check(at_least_zero());
  if (with_methods) given->method.add_to(*verb, program.host());
  verb->footer("graft quantize models/SmolLM2-135M-Instruct models/quantized --method METHOD");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
