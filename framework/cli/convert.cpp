#include <filesystem>
#include <iostream>
#include <map>
#include <memory>

#include "checkpoint/folder.h"
#include "checkpoint/model_files.h"
#include "cli/program.h"

namespace graft::cli {
namespace fs = std::filesystem;
namespace {

struct Arguments {
  std::string model, output, format, dtype;
  std::uint64_t shard_bytes = WriteOptions{}.shard_bytes;
  bool overwrite = false, repair = false;
};

WriteOptions write_options(Program& program, const Arguments& given) {
  WriteOptions write;
  write.shard_bytes = given.shard_bytes;
  write.overwrite = given.overwrite;
  write.progress = [&program](std::uint64_t done, std::uint64_t total) {
    return program.context().progress("saving", done, total);
  };
  return write;
}

LoadedModel load(Program& program, const Checkpoint& checkpoint, const Arguments& given) {
  if (checkpoint.tensors().empty()) throw Error(ErrorKind::usage, "the model has no weights");
  LoadOptions options;
  options.device = program.device();
  options.context = program.context();
  {
    const FolderWriter refuses_early(given.output, write_options(program, given),
                                     {checkpoint.folder()});
  }
  return program.host().load(checkpoint, options);
}

void report(Program& program, const Arguments& given, const LoadedModel& loaded,
            const std::string& what) {
  const std::size_t modules = loaded.plan.count(Action::quantize);
  if (program.globals.json) {
    Value result;
    result.set("output", given.output);
    result.set("modules", static_cast<std::int64_t>(modules));
    result.set("settings", loaded.config ? Value(loaded.config->summary()) : Value());
    program.print_json(result);
  } else {
    std::cout << what << " " << modules << " modules: " << given.output << "\n";
  }
}

/// Copies the folder with spaces where headers are padded with zeros, and changes nothing else.
void repair(Program& program, const Arguments& given) {
  const auto folder = find_model(given.model);
  FolderWriter writer(given.output, write_options(program, given), {folder});
  std::int64_t repaired = 0;
  const auto folders = folders_of_model(folder);
  for (const auto& name : names_in(folder)) {
    const auto file = folder / name;
    std::error_code error;
    if (!fs::is_regular_file(file, error) && !folders.contains(file)) continue;
    if (interrupted()) throw Error(ErrorKind::interrupted, "interrupted while files were copied");
    if (file.extension() == ".safetensors")
      repaired += writer.copy_repaired(file);
    else
      writer.copy_file(file);
  }
  if (repaired == 0)
    throw Error(ErrorKind::usage, "there is nothing to repair")
        .at(quote(given.model))
        .expected("a header that is padded with zeros");
  writer.commit();
  if (program.globals.json) {
    Value result;
    result.set("output", given.output);
    result.set("repaired", repaired);
    program.print_json(result);
  } else {
    std::cout << "repaired " << repaired << " file(s): " << given.output << "\n";
  }
}

void convert(Program& program, const Arguments& given) {
  if (given.repair) return repair(program, given);
  if (given.format.empty())
    throw Error(ErrorKind::usage, "--to or --repair is required")
        .hint("`graft convert --help` shows how it is called");
  auto loaded = load(program, Checkpoint::open(find_model(given.model)), given);
  program.host().set_format(loaded, given.format);
  program.host().save(loaded, given.output, write_options(program, given));
  report(program, given, loaded, "wrote as " + given.format);
}

void dequantize(Program& program, const Arguments& given) {
  auto loaded = load(program, Checkpoint::open(find_model(given.model)), given);
  if (loaded.plan.count(Action::quantize) == 0)
    throw Error(ErrorKind::usage, "the model is not quantized").at(quote(given.model));
  program.host().dequantize(loaded, parse_dtype(given.dtype).value_or(loaded.plan.dtype));
  program.host().save(loaded, given.output, write_options(program, given));
  report(program, given, loaded, "dequantized");
}

/// "A layout of the model's method. a: x, y; b: z"
std::string formats_of(const Host& host) {
  std::map<std::string, std::string> by_method;
  for (const auto* library : host.plugins().libraries())
    for (const auto& claim : library->claims())
      if (const auto* quantizer = library->quantizer(claim.method); quantizer)
        by_method[claim.method] = CLI::detail::join(quantizer->formats(), ", ");
  std::string out = "A layout of the model's method";
  for (const auto& [method, formats] : by_method)
    if (!formats.empty()) out += "; " + method + ": " + formats;
  return out;
}

std::shared_ptr<Arguments> add_folders(CLI::App& verb) {
  auto given = std::make_shared<Arguments>();
  verb.add_option("MODEL", given->model, "Folder or cached org/name")->required();
  verb.add_option("OUT", given->output, "Folder to make")->required();
  verb.add_option("--shard-bytes", given->shard_bytes, "Most bytes in a weight file")
      ->capture_default_str();
  verb.add_flag("--overwrite", given->overwrite, "Replace OUT when it is a model folder");
  return given;
}

}  // namespace

void add_convert(CLI::App& app, Program& program, bool with_formats) {
  auto* verb = app.add_subcommand(
      "convert", "Write a quantized model in another layout of its method, without a loss");
  auto given = add_folders(*verb);
  verb->add_option("--to", given->format,
                   with_formats ? formats_of(program.host()) : "A layout of the model's method");
  verb->add_flag("--repair", given->repair,
                 "Write the model as it is, its headers padded with spaces in place of zeros")
      ->excludes("--to")
      ->excludes("--shard-bytes");
  verb->callback([given, &program] { convert(program, *given); });
}

void add_dequantize(CLI::App& app, Program& program) {
  auto* verb = app.add_subcommand("dequantize", "Write a quantized model as a dense one");
  auto given = add_folders(*verb);
  verb->add_option("--dtype", given->dtype,
                   "Of the weights: float32, bfloat16 or float16; default as the model");
  verb->footer("graft dequantize models/quantized models/dense --dtype float32");
  verb->callback([given, &program] { dequantize(program, *given); });
}

}  // namespace graft::cli
