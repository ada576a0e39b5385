#include "cli/quantize_job.h"

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "cli/process_memory.h"
#include "cli/program.h"
#include "cli/quantize_report.h"
#include "graft/activations.h"
#include "graft/job_state.h"
#include "graft/ranks.h"

namespace graft::cli {
namespace {

namespace fs = std::filesystem;

/// A path as text for JSON, which is UTF-8 and names of files need not be: with '%' and all that is
/// not ASCII as %NN.
std::string word_of(const fs::path& path) {
  std::string out;
  for (const char c : path.string()) {
    char escape[4] = {c};
    if (c == '%' || static_cast<unsigned char>(c) >= 0x80)
      std::snprintf(escape, sizeof(escape), "%%%02x", static_cast<unsigned char>(c));
    out += escape;
  }
  return out;
}

fs::path path_of(const Value& word) {
  const std::string& text = word.as_string();
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (c == '%' && i + 2 < text.size()) {
      std::from_chars(text.data() + i + 1, text.data() + i + 3, c, 16);
      i += 2;
    }
    out += static_cast<char>(c);
  }
  return out;
}

Value words_of(const std::vector<std::string>& paths) {
  Value::Array out;
  for (const auto& path : paths) out.emplace_back(word_of(fs::absolute(path)));
  return out;
}

std::vector<std::string> paths_of(const Value& words) {
  std::vector<std::string> out;
  for (const auto& word : words.as_array()) out.push_back(path_of(word).string());
  return out;
}

/// Those that decide what a job makes, not how it is shown.
Value to_value(const Globals& globals) {
  Value out;
  out.set("act", globals.activations);
  out.set("device", globals.device);
  out.set("device_map", globals.device_map);
  out.set("max_memory", globals.max_memory);
  out.set("deterministic", globals.deterministic);
  out.set("trust", globals.trust);
  out.set("strict", globals.strict);
  out.set("allow_nonfinite", globals.allow_nonfinite);
  out.set("allow_insecure_plugins", globals.allow_insecure);
  out.set("plugins", words_of(globals.plugin_files));
  out.set("plugin_paths", words_of(globals.plugin_paths));
  out.set("registries", words_of(globals.registry_files));
  return out;
}

void take(const Value& from, Globals& globals) {
  globals.activations = from.at("act").as_string();
  globals.device = from.at("device").as_string();
  globals.device_map = from.get_string("device_map", "");
  globals.max_memory = from.get_string("max_memory", "");
  globals.deterministic = from.get_bool("deterministic", false);
  globals.trust = from.at("trust").as_string();
  globals.strict = from.at("strict").as_bool();
  globals.allow_nonfinite = from.at("allow_nonfinite").as_bool();
  globals.allow_insecure = from.at("allow_insecure_plugins").as_bool();
  globals.plugin_files = paths_of(from.at("plugins"));
  globals.plugin_paths = paths_of(from.at("plugin_paths"));
  globals.registry_files = paths_of(from.at("registries"));
}

void print(const Program& program, const LoadedModel& loaded, const std::string& output,
           const std::optional<Comparison>& measured, double took) {
  const Plan& plan = loaded.plan;
  if (program.globals.json) {
    Value result;
    result.set("output", output);
    result.set("quantized", static_cast<std::int64_t>(plan.count(Action::quantize)));
    result.set("bytes_before", static_cast<std::int64_t>(plan.bytes_before()));
    result.set("bytes_after", static_cast<std::int64_t>(plan.bytes_after()));
    result.set("bits_per_weight", plan.bits_per_weight());
    result.set("seconds", took);
    result.set("calibration",
               loaded.calibration.empty() ? Value() : graft::to_value(loaded.calibration));
    Value::Array polished;
    for (const auto& layer : loaded.polished) polished.push_back(graft::to_value(layer));
    result.set("polished", std::move(polished));
    result.set("fallback_modules", fallback_modules(loaded.calibration));
    result.set("comparison", measured ? graft::to_value(*measured) : Value());
    program.print_json(result);
    return;
  }
  std::cout << "quantized " << plan.count(Action::quantize) << " modules (" << plan.settings
            << "), " << megabytes(plan.bytes_before()) << " -> " << megabytes(plan.bytes_after())
            << ", in " << seconds(took) << ": " << output << "\n";
  if (measured) std::cout << in_words(*measured) << "\n";
}

/// "FILE" or "FILE=WEIGHT"; a file that there is wins, whatever its name holds.
CalibrationFile calibration_file(const std::string& word) {
  std::error_code ignored;
  const auto sign = word.rfind('=');
  if (sign == std::string::npos || fs::exists(word, ignored)) return {fs::absolute(word), 1};
  const std::string number = word.substr(sign + 1);
  char* end = nullptr;
  const double weight = std::strtod(number.c_str(), &end);
  if (number.empty() || *end || !(weight > 0) || !std::isfinite(weight))
    throw Error(ErrorKind::usage, "the weight of a calibration file cannot be used")
        .at("--calibration " + quote(word))
        .expected("a number above 0 behind the last '='")
        .found(quote(number));
  return {fs::absolute(word.substr(0, sign)), weight};
}

/// What stays of it is told to whoever starts the job again.
void try_to_discard(const fs::path& state) {
  try {
    discard_job_state(state);
  } catch (const Error&) {
  }
}

}  // namespace

void CalibrationArguments::add_to(CLI::App& verb) {
  verb.add_option("--calibration", files,
                  "Text to quantize by: plain, .jsonl with \"text\" or \"messages\", or "
                  ".safetensors with input_ids; several share the samples, FILE=2 has twice the "
                  "share of another; default where a method needs one: graft's own")
      ->allow_extra_args(false);
  verb.add_option("--samples", size.samples, "Of calibration text, at most")
      ->capture_default_str()
      ->check(at_least_one());
  verb.add_option("--seq-len", size.length, "Tokens of a sample")
      ->capture_default_str()
      ->check(at_least_one());
  verb.add_option("--recipe", recipe,
                  "How much work calibration takes on itself: fast, default or best")
      ->capture_default_str();
  verb.add_option("--polish", polish_steps,
                  "Steps in which each layer's codes are chosen anew, all together, by how far its "
                  "output is from the dense model's; 100 does")
      ->check(at_least_one());
  verb.add_flag("--search-by-block", search_by_block,
                "Search scales of inputs by the output of attention or MLP, in place of the modules' "
                "own; slower");
  verb.add_flag("--all-experts", all_experts,
                "Calibrate experts with all tokens, not only those that the router sends them");
}

void CalibrationArguments::put_into(QuantizeJob& job) const {
  for (const auto& file : files) job.calibration.push_back(calibration_file(file));
  job.size = size;
  job.recipe = parse_recipe(recipe);
  job.polish_steps = polish_steps;
  job.search_by_block = search_by_block;
  job.all_experts = all_experts;
}

fs::path job_folder(const fs::path& output) { return FolderWriter::sibling(output, "job"); }

Value to_value(const QuantizeJob& job, const Program& program) {
  Value out;
  out.set("model", word_of(job.model));
  out.set("settings", job.settings);
  out.set("dtype", job.dtype);
  out.set("shard_bytes", static_cast<std::int64_t>(job.shard_bytes));
  out.set("overwrite", job.overwrite);
  out.set("ignore_quantization_config", job.ignore_config);
  Value::Array files;
  for (const auto& file : job.calibration) {
    Value row;
    row.set("path", word_of(file.path));
    row.set("weight", file.weight);
    files.push_back(std::move(row));
  }
  out.set("calibration", std::move(files));
  out.set("samples", job.size.samples);
  out.set("seq_len", job.size.length);
  out.set("recipe", std::string(word_of(job.recipe)));
  out.set("all_experts", job.all_experts);
  out.set("polish_steps", job.polish_steps);
  out.set("search_by_block", job.search_by_block);
  out.set("eval", word_of(job.eval));
  out.set("target_bpw", job.bits_per_weight ? Value(*job.bits_per_weight) : Value());
  out.set("max_kl", job.max_kl ? Value(*job.max_kl) : Value());
  out.set("max_fallback", job.max_fallback ? Value(*job.max_fallback) : Value());
  out.set("globals", to_value(program.globals));
  return out;
}

QuantizeJob job_from(const Value& call, Program& program) {
  if (to_value(program.globals) != to_value(Globals{}))
    throw Error(ErrorKind::usage, "the job has its own plugins, rules, device and ways to compute")
        .hint("leave out the options but for --threads, --json, --log, -q and -v");
  QuantizeJob job;
  job.model = path_of(call.at("model"));
  job.settings = call.at("settings");
  job.dtype = call.at("dtype").as_string();
  job.shard_bytes = static_cast<std::uint64_t>(call.at("shard_bytes").as_int());
  job.overwrite = call.at("overwrite").as_bool();
  job.ignore_config = call.at("ignore_quantization_config").as_bool();
  for (const auto& file : call.at("calibration").as_array())
    job.calibration.push_back({path_of(file.at("path")), file.at("weight").as_double()});
  job.size = {call.at("samples").as_int(), call.at("seq_len").as_int()};
  job.recipe = parse_recipe(call.at("recipe").as_string());
  job.all_experts = call.get_bool("all_experts", false);
  job.polish_steps = static_cast<int>(call.get_int("polish_steps", 0));
  job.search_by_block = call.get_bool("search_by_block", false);
  job.eval = path_of(call.at("eval"));
  if (const Value* most = call.find("target_bpw")) job.bits_per_weight = most->as_double();
  if (const Value* most = call.find("max_kl")) job.max_kl = most->as_double();
  if (const Value* most = call.find("max_fallback")) job.max_fallback = most->as_int();
  take(call.at("globals"), program.globals);
  set_activation_mode(parse_activation_mode(program.globals.activations));
  return job;
}

/// Does it with the other processes; those but the first help, and write and print nothing.
static void run_together(Program& program, const QuantizeJob& job, const std::string& output,
                         bool resumes, Ranks* ranks) {
  const auto start = std::chrono::steady_clock::now();
  LoadOptions options;
  options.quantization_config = job.settings;
  options.dtype = parse_dtype(job.dtype);
  options.device = program.device();
  options.recipe = job.recipe;
  options.all_experts = job.all_experts;
  options.polish_steps = job.polish_steps;
  options.search_by_block = job.search_by_block;
  options.ignore_quantization_config = job.ignore_config;
  options.context = program.context();
  options.ranks = ranks;
  options.state = {job_folder(output), to_value(job, program)};
  WriteOptions write;
  write.shard_bytes = job.shard_bytes;
  write.overwrite = job.overwrite;
  write.progress = [&program](std::uint64_t done, std::uint64_t total) {
    return program.context().progress("saving", done, total);
  };
  const Checkpoint checkpoint = Checkpoint::open(job.model);
  return_large_memory(checkpoint.total_bytes());
  if (quantization_config_of(checkpoint.config()) && !job.ignore_config)
    throw Error(ErrorKind::usage, "the model is quantized already")
        .at(quote((job.model / "config.json").string()))
        .hint("quantize the dense model it was made from");
  // Settings that do not fit the model are told before any text is read.
  if (!job.bits_per_weight)
    program.host().plan(checkpoint, options).check(program.globals.strict);
  const auto take_calibration = [&](const JobTexts& texts) {
    if (texts.calibration) options.calibration = texts.calibration->ids;
    if (!job.bits_per_weight) return;
    program.context().say(LogLevel::info, "calibrate", "first to choose bits, then to quantize");
    options.quantization_config =
        program.host().choose_bits(checkpoint, options, *job.bits_per_weight);
  };
  if (ranks && ranks->rank() > 0) {
    take_calibration(read_texts(program, checkpoint, options, job));
    program.host().load(checkpoint, options);
    return;
  }
  // Refuses early, and keeps others from the output and from the state beside it.
  std::vector<fs::path> inputs{job.model};
  for (const auto& file : job.calibration) inputs.push_back(file.path);
  if (!job.eval.empty()) inputs.push_back(job.eval);
  for (const auto* list : {&program.globals.plugin_files, &program.globals.registry_files})
    inputs.insert(inputs.end(), list->begin(), list->end());
  if (!program.globals.log_file.empty()) inputs.push_back(program.globals.log_file);
  FolderWriter writer(output, write, inputs);
  if (!resumes) {
    if (has_job_state(options.state.folder) && !job.overwrite)
      throw Error(ErrorKind::usage, "the job that was to make this output was interrupted")
          .at(quote(output))
          .found("its state in " + options.state.folder.string())
          .hint("`graft resume " + output + "` goes on with it, --overwrite discards it");
    discard_job_state(options.state.folder);
  }
  try {
    const JobTexts texts = read_texts(program, checkpoint, options, job);
    take_calibration(texts);
    const auto loaded = program.host().load(checkpoint, options);
    if (loaded.plan.count(Action::quantize) == 0)
      throw Error(ErrorKind::usage, "nothing is quantized: all modules stay dense")
          .at(quote(job.model.string()))
          .hint("`graft plan` says why of each; a shorter --skip leaves some");
    const auto measured = measure(program, loaded, options, texts);
    check_gates(job, loaded, texts, measured);
    write_report(writer, loaded, job, texts, measured);
    program.host().save(loaded, writer);
    discard_job_state(options.state.folder);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    print(program, loaded, output, measured, took.count());
  } catch (RankLost& lost) {
    if (has_job_state(options.state.folder)) lost.hint("`graft resume " + output + "` goes on");
    throw;
  } catch (const Error& error) {
    const ErrorKind kind = error.kind();
    if (!has_job_state(options.state.folder)) throw;
    if (kind == ErrorKind::interrupted || kind == ErrorKind::resource)
      throw Error(kind, error.what()).hint("`graft resume " + output + "` goes on");
    // It would fail there again. What resume refuses to go on with may be brought back.
    if (kind == ErrorKind::quality || (!resumes && kind != ErrorKind::internal))
      try_to_discard(options.state.folder);
    throw;
  }
}

void run(Program& program, const QuantizeJob& job, const std::string& output, bool resumes) {
  const auto ranks = [] {
    const WhileNothingRuns waiting_for_the_others;
    return join_ranks();
  }();
  if (ranks && ranks->rank() > 0) program.terminal.be_silent();
  try {
    run_together(program, job, output, resumes, ranks.get());
  } catch (const RankLost& lost) {
    program.speechless = lost.told();
    throw;
  } catch (const std::exception& error) {
    program.speechless = ranks && !ranks->fail(error.what());
    throw;
  }
}

}  // namespace graft::cli
