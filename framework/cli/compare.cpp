#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>

#include "checkpoint/output_file.h"
#include "cli/program.h"
#include "cli/quantize_report.h"
#include "graft/tokenizer.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string reference, model, text, dtype, html;
  std::int64_t context = 512;
  std::optional<double> max_kl;
  MethodOptions method;
};

/// The text's token ids, which have to be the same for both.
std::vector<std::int64_t> encode(const std::filesystem::path& reference,
                                 const std::filesystem::path& model, const std::string& text) {
  auto ids = Tokenizer::open(reference).encode(text);
  if (ids != Tokenizer::open(model).encode(text))
    throw Error(ErrorKind::usage, "the models have different tokenizers")
        .at(quote(model.string()))
        .expected("the token ids that " + quote(reference.string()) + " makes of the text")
        .hint("compare a model with the one it was made from");
  return ids;
}

void run(Program& program, const Arguments& given) {
  const auto start = std::chrono::steady_clock::now();
  const auto reference = find_model(given.reference), model = find_model(given.model);
  if (!given.html.empty()) require_writable(given.html, {given.text}, {reference, model});
  const ReportedText text{
      std::filesystem::path(given.text).filename().string(),
      evaluation_windows(encode(reference, model, read_text_file(given.text)), given.context)};
  LoadOptions options;
  options.dtype = parse_dtype(given.dtype);
  options.device = program.device();
  options.context = program.context();
  const auto dense = program.host().load(reference, options);
  options.quantization_config = given.method.loading_settings();
  const auto quantized = program.host().load(model, options);
  const Comparison found =
      compare(dense.model, quantized.model, text.ids, program.context());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (program.globals.json) {
    Value result = graft::to_value(found);
    result.set("seconds", took.count());
    program.print_json(result);
  } else {
    std::cout << in_words(found) << "\n"
              << with_commas(static_cast<std::uint64_t>(found.tokens)) << " tokens in "
              << found.windows << " windows of " << found.context << ", " << seconds(took.count())
              << "\n";
    for (std::size_t i = 0; i < found.layers.size(); ++i)
      std::printf("layer %zu  relative squared error of hidden states %.4g\n", i, found.layers[i]);
  }
  if (!given.html.empty()) {
    Value report;
    report.set("graft", GRAFT_VERSION);
    report.set("model", name_of(model));
    report.set("reference", name_of(reference));
    report.set("comparison", reported(found, text));
    const std::string page = to_html(report);
    write_whole(given.html, [&](OutputFile& file) { file.write(0, page.data(), page.size()); });
  }
  if (given.max_kl)
    check_kl(found, *given.max_kl, text.file, "the figures are printed; quantize with more bits");
}

}  // namespace

void add_compare(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("compare", "How far a quantized model is from the dense one");
  verb->add_option("A", given->reference, "The reference: folder or cached org/name")->required();
  verb->add_option("B", given->model, "The model made from it")->required();
  verb->add_option("--text", given->text, "UTF-8 text file")->required();
  verb->add_option("--context", given->context, "Tokens of a window; windows do not overlap")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20));
  verb->add_option("--html", given->html, "Write a report with plots to this file");
  verb->add_option("--max-kl", given->max_kl,
                   "Exit with 5 when the mean KL divergence is above this many nats a token")
      ->check(at_least_zero());
  verb->add_option("--dtype", given->dtype,
                   "Of activations: float32, bfloat16 or float16; default as the models");
  if (with_methods) given->method.add_loading_to(*verb, program.host());
  verb->footer("graft compare models/SmolLM2-135M-Instruct models/quantized --text book.txt");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
