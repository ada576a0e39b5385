#include "graft/generate.h"

#include <charconv>
#include <chrono>
#include <cstdio>
#include <memory>

#include "cli/program.h"
#include "graft/tokenizer.h"

namespace graft::cli {
namespace {

struct Arguments {
  ModelToRun model;
  std::string prompt, system, ids;
  bool chat = false, ignore_eos = false;
  GenerateOptions options;
};

std::vector<std::int64_t> parse_ids(const std::string& text) {
  std::vector<std::int64_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    std::int64_t id = 0;
    const auto [stop, failed] = std::from_chars(at, end, id);
    if (failed != std::errc{} || (stop != end && *stop != ',') || stop + 1 == end)
      throw Error(ErrorKind::usage, "wrong --ids")
          .expected("numbers with commas between, such as 1,2,3")
          .found(quote(text));
    ids.push_back(id);
    at = stop == end ? end : stop + 1;
  }
  return ids;
}

std::vector<std::int64_t> encode(const Tokenizer& tokenizer, const Arguments& given) {
  if (!given.chat) return tokenizer.encode(given.prompt);
  std::vector<ChatMessage> messages;
  if (!given.system.empty()) messages.push_back({"system", given.system});
  messages.push_back({"user", given.prompt});
  return tokenizer.encode(tokenizer.chat_prompt(messages), false);
}

double rate(std::size_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void run(Program& program, const Arguments& given) {
  const auto folder = given.model.folder();
  std::optional<Tokenizer> tokenizer;
  std::vector<std::int64_t> prompt = parse_ids(given.ids);
  if (given.ids.empty()) {
    tokenizer = Tokenizer::open(folder);
    prompt = encode(*tokenizer, given);
  }
  const auto start = std::chrono::steady_clock::now();
  const auto loaded = given.model.load(program);
  const double load =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  GenerateOptions options = given.options;
  options.context = program.context();
  if (!given.ignore_eos) {
    options.stop_ids = stop_ids_of(loaded.checkpoint);
    if (tokenizer && tokenizer->eos_id()) options.stop_ids.push_back(*tokenizer->eos_id());
  }

  const bool stream = !program.globals.json;
  std::optional<TextStream> words;
  if (tokenizer) words.emplace(*tokenizer);
  std::string text;
  const auto show = [&](const std::string& piece) {
    text += piece;
    if (!stream) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  const auto out = generate(*loaded.model, prompt, options, [&](std::int64_t id) {
    // Models have ids behind the tokenizer's, to fill up the embedding; they stand for no text.
    if (!words)
      show((text.empty() ? "" : ",") + std::to_string(id));
    else if (id < static_cast<std::int64_t>(tokenizer->size()))
      show(words->push(id));
    return !interrupted();
  });
  if (words) show(words->finish());
  if (stream) std::printf("\n");
  if (interrupted()) throw Error(ErrorKind::interrupted, "interrupted");
  if (out.full)
    program.context().say(LogLevel::warning, "generate", "ended at the last of the model's positions");

  const double prompt_rate = rate(prompt.size(), out.prompt_seconds);
  const double decode_rate = rate(out.ids.empty() ? 0 : out.ids.size() - 1, out.decode_seconds);
  if (!stream) {
    Value result;
    if (words) result.set("text", text);
    result.set("ids", Value::Array(out.ids.begin(), out.ids.end()));
    result.set("stopped", out.stopped);
    result.set("full", out.full);
    result.set("prompt_tokens", static_cast<std::int64_t>(prompt.size()));
    result.set("load_s", load);
    result.set("prompt_tokens_per_s", prompt_rate);
    result.set("decode_tokens_per_s", decode_rate);
    program.print_json(result);
  } else if (!program.globals.quiet) {
    std::fprintf(stderr, "load %s, prompt %zu tokens at %.0f tokens/s, %zu new at %.0f tokens/s\n",
                 seconds(load).c_str(), prompt.size(), prompt_rate, out.ids.size(), decode_rate);
  }
}

}  // namespace

void add_generate(CLI::App& app, Program& program, bool with_methods) {
  auto given = std::make_shared<Arguments>();
  auto* verb = app.add_subcommand("generate", "Continue a text, or answer with --chat");
  given->model.add_to(*verb, program, with_methods);
  auto* text = verb->add_option("--prompt", given->prompt, "Text to continue");
  auto* ids = verb->add_option("--ids", given->ids, "Token ids in its place: 1,2,3; prints ids");
  auto* input = verb->add_option_group("input");
  input->add_option(text);
  input->add_option(ids);
  input->require_option(1);
  auto* chat = verb->add_flag("--chat", given->chat, "Put the prompt into the model's chat format")
                   ->excludes(ids);
  verb->add_option("--system", given->system, "System text of the chat; default: the template's")
      ->needs(chat);
  verb->add_option("--max-new-tokens", given->options.max_new_tokens, "Most tokens to write")
      ->capture_default_str()
      ->check(at_least_one());
  auto* temperature = verb->add_option("--temperature", given->options.temperature,
                                       "0: always the most likely token")
                          ->capture_default_str();
  verb->add_option("--top-p", given->options.top_p, "Sample from this share of probability")
      ->capture_default_str()
      ->needs(temperature);
  verb->add_option("--seed", given->options.seed, "Of the sampling")
      ->capture_default_str()
      ->needs(temperature);
  verb->add_flag("--ignore-eos", given->ignore_eos, "Go on behind the end of the answer");
  verb->footer(
      "graft generate models/SmolLM2-135M-Instruct --chat --prompt \"What is the capital of "
      "France?\"");
  verb->callback([given, &program] { run(program, *given); });
}

}  // namespace graft::cli
