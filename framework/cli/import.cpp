#include <chrono>
#include <iostream>
#include <memory>

#include "cli/program.h"
#include "graft/gguf.h"

namespace graft::cli {
namespace {

struct Arguments {
  std::string file, output, dtype = "bfloat16", splitting;
  std::uint64_t shard_bytes = WriteOptions{}.shard_bytes;
  bool overwrite = false;
};

void run(Program& program, const Arguments& given) {
  const auto start = std::chrono::steady_clock::now();
  GgufImportOptions options;
  const auto dtype = parse_dtype(given.dtype);
  options.dtype = dtype == at::kHalf ? Dtype::F16 : dtype == at::kFloat ? Dtype::F32 : Dtype::BF16;
  options.splitting = given.splitting;
  options.threads = &pool();
  options.write.shard_bytes = given.shard_bytes;
  options.write.overwrite = given.overwrite;
  options.write.progress = [&program](std::uint64_t done, std::uint64_t total) {
    return program.context().progress("importing", done, total);
  };
  const GgufImport result = import_gguf(given.file, given.output, options);
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  program.terminal.finish_line();
  if (program.globals.json) {
    Value out;
    out.set("output", given.output);
    out.set("architecture", result.architecture);
    out.set("tensors", static_cast<std::int64_t>(result.tensors));
    out.set("parameters", static_cast<std::int64_t>(result.parameters));
    out.set("bytes", static_cast<std::int64_t>(result.bytes));
    out.set("seconds", took);
    program.print_json(out);
    return;
  }
  std::cout << "imported " << result.architecture << ": " << result.tensors << " tensors, "
            << with_commas(result.parameters) << " parameters, " << megabytes(result.bytes)
            << ", in " << seconds(took) << ": " << given.output << "\n";
}

}  // namespace

void add_import(CLI::App& app, Program& program) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("import", "Make a model folder of a GGUF file (llama.cpp)");
  verb->add_option("FILE", given->file, "The .gguf file")->required();
  verb->add_option("OUT", given->output, "Folder to make")->required();
  verb->add_option("--dtype", given->dtype, "Of the weights: bfloat16, float16 or float32")
      ->capture_default_str();
  verb->add_option("--splitting", given->splitting,
                   "How the tokenizer splits text, for files that do not say it: gpt-2, smollm, "
                   "llama-bpe or qwen2");
  verb->add_option("--shard-bytes", given->shard_bytes, "Most bytes in a weight file")
      ->capture_default_str();
  verb->add_flag("--overwrite", given->overwrite, "Replace OUT when it is a model folder");
  verb->footer("graft import SmolLM2-135M-Instruct.Q4_1.gguf models/SmolLM2-135M-Instruct");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
