#include <chrono>
#include <cstdio>
#include <memory>

#include "cli/program.h"
#include "graft/evaluate.h"
#include "graft/tokenizer.h"

namespace graft::cli {
namespace {

struct Arguments {
  ModelToRun model;
  std::string text;
  std::int64_t context = 512;
};

void run(Program& program, const Arguments& given) {
  const auto folder = given.model.folder();
  const auto ids = Tokenizer::open(folder).encode(read_text_file(given.text));
  const auto loaded = given.model.load(program);
  const auto start = std::chrono::steady_clock::now();
  const Perplexity found = perplexity(*loaded.model, ids, given.context, program.context());
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (program.globals.json) {
    Value result;
    result.set("perplexity", found.value);
    result.set("tokens", found.tokens);
    result.set("windows", found.windows);
    result.set("seconds", took);
    program.print_json(result);
    return;
  }
  std::printf("perplexity %.4f over %s tokens in %lld windows of %lld, %s\n", found.value,
              with_commas(static_cast<std::uint64_t>(found.tokens)).c_str(),
              static_cast<long long>(found.windows),
              static_cast<long long>(found.tokens / found.windows + 1), seconds(took).c_str());
}

}  // namespace

void add_eval(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("eval", "Perplexity of a text");
  given->model.add_to(*verb, program, with_methods);
  verb->add_option("--text", given->text, "UTF-8 text file")->required();
  verb->add_option("--context", given->context, "Tokens of a window; windows do not overlap")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20));
  verb->footer("graft eval models/SmolLM2-135M-Instruct --text book.txt");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
