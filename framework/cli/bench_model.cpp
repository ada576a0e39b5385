#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <numeric>

#include "cli/process_memory.h"
#include "cli/program.h"
#include "graft/generate.h"

namespace graft::cli {
namespace {

constexpr std::int64_t kPromptTokens = 512, kContextTokens = 64, kDecodedTokens = 48;

struct Arguments {
  std::string model, dtype;
  MethodOptions method;
  int rounds = 3;
  std::uint64_t resident_before = 0;
};

/// Tokens of no language, the same each time: speed does not depend on what they are.
std::vector<std::int64_t> some_tokens(const Model& model, std::int64_t count) {
  const std::int64_t vocabulary = model.text_config().get_int("vocab_size", 1);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
  std::int64_t id = 1;
  for (auto& next : ids) next = id = (id * 7919 + 17) % vocabulary;
  return ids;
}

struct Rates {
  double load = 1e30, prompt = 0, decode = 0;
};

void measure(Program& program, const Arguments& given, Rates& best) {
  LoadOptions options;
  options.quantization_config = given.method.settings();
  options.dtype = parse_dtype(given.dtype);
  options.device = program.device();
  options.context = program.context();
  const auto start = std::chrono::steady_clock::now();
  const auto loaded = program.host().load(find_model(given.model), options);
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
  best.load = std::min(best.load, load.count());

  Model& model = *loaded.model;
  GenerateOptions one;
  one.max_new_tokens = 1;
  GenerateOptions many;
  many.max_new_tokens = kDecodedTokens + 1;
  many.context = program.context();
  const auto prompt = some_tokens(model, kPromptTokens);
  const auto context = some_tokens(model, kContextTokens);
  generate(model, some_tokens(model, 8), one);
  for (int turn = 0; turn < 2; ++turn) {
    const auto first = generate(model, prompt, one);
    best.prompt = std::max(best.prompt, kPromptTokens / first.prompt_seconds);
    const auto rest = generate(model, context, many);
    best.decode = std::max(best.decode, kDecodedTokens / rest.decode_seconds);
    if (interrupted()) throw Error(ErrorKind::interrupted, "interrupted");
  }
}

void run(Program& program, const Arguments& given) {
  Rates best;
  for (int round = 0; round < given.rounds; ++round) measure(program, given, best);
  const auto checkpoint = Checkpoint::open(find_model(given.model));
  const auto& shards = checkpoint.shards();
  const std::uint64_t file = std::accumulate(
      shards.begin(), shards.end(), std::uint64_t{0},
      [](std::uint64_t sum, const auto& shard) { return sum + std::filesystem::file_size(shard); });
  const std::uint64_t peak = memory_of_process("VmHWM");
  const std::uint64_t beyond = peak - std::min(peak, given.resident_before);
  if (program.globals.json) {
    Value result;
    result.set("load_s", best.load);
    result.set("prompt_tokens_per_s", best.prompt);
    result.set("decode_tokens_per_s", best.decode);
    result.set("peak_rss_bytes", static_cast<std::int64_t>(peak));
    result.set("model_rss_bytes", static_cast<std::int64_t>(beyond));
    result.set("file_bytes", static_cast<std::int64_t>(file));
    program.print_json(result);
    return;
  }
  std::printf(
      "load %.2f s, prompt of %lld: %.0f tokens/s, decode: %.1f tokens/s\n"
      "peak memory %s, of it %s for the model, whose files have %s\n",
      best.load, static_cast<long long>(kPromptTokens), best.prompt, best.decode,
      megabytes(peak).c_str(), megabytes(beyond).c_str(), megabytes(file).c_str());
}

}  // namespace

void add_bench_model(CLI::App& bench, Program& program, bool with_methods) {
  auto* verb = bench.add_subcommand(
      "model", "Time to load, prompt and decode tokens a second, and peak memory of a model");
  auto given = std::make_shared<Arguments>();
  // LibTorch is there, plugins and models are not.
  given->resident_before = memory_of_process("VmRSS");
  verb->add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb->add_option("--dtype", given->dtype,
                   "Of activations: float32, bfloat16 or float16; default as the model");
  verb->add_option("--rounds", given->rounds, "Times the model is loaded and measured")
      ->capture_default_str()
      ->check(at_least_one());
  if (with_methods) given->method.add_to(*verb, program.host());
  verb->footer(
      "The best round counts. The prompt has 512 tokens and logits of its last position alone; 48\n"
      "tokens are decoded after 64. With --method a dense model is quantized while it loads.\n\n"
      "  graft bench model models/SmolLM2-135M-Instruct-nf4 --threads 2 --json");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
