#include <ATen/core/Tensor.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>

#include "cli/program.h"
#include "graft/evaluate.h"
#include "graft/tokenizer.h"

namespace graft::cli {
namespace {

struct Arguments {
  ModelToRun model;
  std::string text;
};

/// A small JSON file of the model folder; null when there is none.
Value read_json(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return {};
  try {
    return parse_json(read_text_file(file), {.bytes = 1u << 20});
  } catch (Error& failed) {
    throw failed.at(quote(file.string()));
  }
}

/// Throws when the folder asks for something else than the mean over all tokens.
void check_pooling(const std::filesystem::path& folder) {
  const auto file = folder / "1_Pooling" / "config.json";
  const Value pooling = read_json(file);
  if (!pooling.is_object()) return;
  const auto refuse = [&](const std::string& found) {
    throw Error(ErrorKind::model, "the model pools in a way that graft embed does not have")
        .at(quote(file.string()))
        .expected("pooling_mode_mean_tokens to be true, and no other mode")
        .found(found);
  };
  if (const auto mode = pooling.get_string("pooling_mode", "mean"); mode != "mean")
    refuse("pooling_mode " + quote(mode));
  if (!pooling.get_bool("pooling_mode_mean_tokens", true)) refuse("pooling_mode_mean_tokens false");
  for (const auto& [field, value] : pooling.as_object())
    if (field.starts_with("pooling_mode_") && field != "pooling_mode_mean_tokens" &&
        value.is_bool() && value.as_bool())
      refuse(field + " true");
}

/// Throws when a sentence-transformers folder has modules behind the encoder that graft embed does
/// not run.
void check_modules(const std::filesystem::path& folder) {
  const auto file = folder / "modules.json";
  const Value modules = read_json(file);
  if (!modules.is_array()) return;
  for (const auto& module : modules.as_array()) {
    const std::string type = module.get_string("type", "");
    const auto name = type.substr(type.rfind('.') + 1);  // npos + 1 is 0
    if (name != "Transformer" && name != "Pooling" && name != "Normalize")
      throw Error(ErrorKind::model, "the model has a module that graft embed does not run")
          .at(quote(file.string()))
          .expected("Transformer, Pooling and Normalize")
          .found(quote(type));
  }
}

std::size_t longest_input(const std::filesystem::path& folder, const Value& config) {
  const std::int64_t positions = config.get_int("max_position_embeddings", 512);
  const Value sentences = read_json(folder / "sentence_bert_config.json");
  return static_cast<std::size_t>(std::max<std::int64_t>(
      2, std::min(positions, sentences.get_int("max_seq_length", positions))));
}

/// Cuts to `limit` ids; the last one, which ends the text, stays.
void truncate(std::vector<std::int64_t>& ids, std::size_t limit) {
  if (ids.size() > limit)
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(limit) - 1, ids.end() - 1);
}

void run(Program& program, const Arguments& given) {
  const auto folder = given.model.folder();
  check_modules(folder);
  check_pooling(folder);
  const Tokenizer tokenizer = Tokenizer::open(folder);
  std::istringstream lines(read_text_file(given.text));
  const auto loaded = given.model.load(program);
  const std::size_t limit = longest_input(folder, loaded.model->config());
  Value::Array rows;
  std::size_t cut = 0;
  for (std::string line; std::getline(lines, line);) {
    auto ids = tokenizer.encode(line);
    cut += ids.size() > limit;
    truncate(ids, limit);
    const auto row = mean_pooled_embedding(*loaded.model, ids);
    const float* values = row.const_data_ptr<float>();
    if (program.globals.json) {
      Value::Array numbers;
      for (std::int64_t i = 0; i < row.numel(); ++i)
        numbers.emplace_back(static_cast<double>(values[i]));
      rows.push_back(std::move(numbers));
    } else {
      for (std::int64_t i = 0; i < row.numel(); ++i)
        std::printf("%s%.9g", i ? " " : "", static_cast<double>(values[i]));
      std::printf("\n");
    }
    if (interrupted()) throw Error(ErrorKind::interrupted, "interrupted");
  }
  if (cut)
    program.terminal.say(LogLevel::warning, "embed",
                         std::to_string(cut) + " line(s) were cut to " + std::to_string(limit) +
                             " tokens, the most this model takes");
  if (program.globals.json) {
    Value result;
    result.set("embeddings", std::move(rows));
    program.print_json(result);
  }
}

}  // namespace

void add_embed(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand(
      "embed", "Sentence embeddings of an encoder: mean-pooled, of length 1, one row a line");
  given->model.add_to(*verb, program, with_methods);
  verb->add_option("--text", given->text, "UTF-8 text file, one sentence a line")->required();
  verb->footer("graft embed models/all-MiniLM-L6-v2 --text sentences.txt");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
