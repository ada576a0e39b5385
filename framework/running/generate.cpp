#include "graft/generate.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <sstream>

#include "graft/error.h"
#include "models/rope.h"
#include "running/decoding_loop.h"
#include "running/forward_loop.h"
#include "running/input_ids.h"

namespace graft {
namespace {

/// Prompt tokens that go through the model at once: bounds the memory of a long prompt.
constexpr std::size_t kPromptChunk = 512;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  /// In [0, 1).
  double next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t state_;
};

/// Throws when nothing can be chosen by them.
void require_finite(std::span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  bool usable = true;
  float most = -kInfinity;
  for (const float logit : logits) {
    usable &= logit < kInfinity;  // false for NaN as well
    most = std::max(most, logit);
  }
  if (!usable || most == -kInfinity)
    throw Error(ErrorKind::model, "the model's logits are not finite, so no token can be chosen")
        .hint("another --dtype may help: float16 overflows first; graft verify checks the weights");
}

std::int64_t most_likely(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

std::int64_t sample(std::span<const float> logits, const GenerateOptions& options, Random& random) {
  std::vector<std::int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  const double most = logits[static_cast<std::size_t>(order[0])];
  std::vector<double> weights(order.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const double logit = logits[static_cast<std::size_t>(order[i])];
    weights[i] = std::exp((logit - most) / options.temperature);
    total += weights[i];
  }
  double nucleus = 0;
  std::size_t count = 0;
  while (count < order.size() && nucleus < options.top_p * total) nucleus += weights[count++];
  double left = random.next() * nucleus;
  for (std::size_t i = 0; i + 1 < count; ++i)
    if ((left -= weights[i]) < 0) return order[i];
  return order[count - 1];
}

void check(const Model& model, std::span<const std::int64_t> prompt,
           const GenerateOptions& options) {
  if (model.output() != Model::Output::logits)
    throw Error(ErrorKind::usage, "a " + model.class_name() + " has no output head to write with")
        .hint("encoders embed text: graft embed");
  if (prompt.empty()) throw Error(ErrorKind::usage, "the prompt is empty");
  require_in_vocabulary(model, prompt);
  if (!(options.temperature >= 0))
    throw Error(ErrorKind::usage, "the temperature must not be negative");
  if (!(options.top_p > 0 && options.top_p <= 1))
    throw Error(ErrorKind::usage, "top-p must be above 0 and at most 1");
}

/// Tokens that a sequence may come to: what the model is made for bounds what was asked for.
std::int64_t room_for(const Model& model, std::size_t prompt, const GenerateOptions& options) {
  const auto given = static_cast<std::int64_t>(prompt);
  const std::int64_t asked = std::min(options.max_new_tokens, std::int64_t{1} << 20);
  const std::int64_t most = model.text_config().get_int("max_position_embeddings", given + asked);
  return given + std::min(asked, std::max<std::int64_t>(most - given, 0));
}

void add_stop_ids(const Value& config, std::vector<std::int64_t>& ids) {
  const Value* eos = config.find("eos_token_id");
  if (!eos) return;
  if (eos->is_array())
    for (const auto& id : eos->as_array()) ids.push_back(id.as_int());
  else
    ids.push_back(eos->as_int());
}

}  // namespace

Generated generate(Model& model, std::span<const std::int64_t> prompt,
                   const GenerateOptions& options,
                   const std::function<bool(std::int64_t id)>& on_token) {
  check(model, prompt, options);
  Generated out;
  if (options.max_new_tokens < 1) return out;
  const c10::InferenceMode guard;
  const auto room = room_for(model, prompt.size(), options);
  std::unique_ptr<DecodingLoop> loop;
  std::unique_ptr<ForwardLoop> forward;
  const auto begin = [&] {
    loop = DecodingLoop::of(model, room);
    if (!loop) forward = ForwardLoop::of(model, options.context);
  };
  begin();
  Random random(options.seed);
  const auto next_after = [&](std::span<const std::int64_t> ids) {
    const auto row = loop ? loop->next(ids) : forward->next(ids);
    require_finite(row);
    return options.temperature > 0 ? sample(row, options, random) : most_likely(row);
  };

  auto start = std::chrono::steady_clock::now();
  std::int64_t next = 0;
  const auto positions = model.positions();
  // Where positions depend on the length of the text, parts would have those of other lengths.
  const auto lengths = rope_lengths_of(model.text_config());
  const auto chunk = lengths.fixed ? kPromptChunk : prompt.size();
  for (std::size_t done = 0; done < prompt.size(); done += chunk)
    next = next_after(prompt.subspan(done, std::min(chunk, prompt.size() - done)));
  out.prompt_seconds = seconds_since(start);

  start = std::chrono::steady_clock::now();
  while (true) {
    out.ids.push_back(next);
    const bool stop =
        std::find(options.stop_ids.begin(), options.stop_ids.end(), next) != options.stop_ids.end();
    if ((on_token && !on_token(next)) || stop) {
      out.stopped = true;
      break;
    }
    if (static_cast<std::int64_t>(out.ids.size()) >= options.max_new_tokens) break;
    if (positions && static_cast<std::int64_t>(prompt.size() + out.ids.size()) > *positions) {
      out.full = true;
      break;
    }
    if (static_cast<std::int64_t>(prompt.size() + out.ids.size()) == lengths.longrope + 1 &&
        lengths.longrope > 0) {
      // All positions have other tables from here on: the text is read again.
      std::vector<std::int64_t> text(prompt.begin(), prompt.end());
      text.insert(text.end(), out.ids.begin(), out.ids.end());
      begin();
      next = next_after(text);
      continue;
    }
    next = next_after(std::span(&next, 1));
  }
  out.decode_seconds = seconds_since(start);
  return out;
}

std::vector<std::int64_t> stop_ids_of(const Checkpoint& checkpoint) {
  std::vector<std::int64_t> ids;
  const auto file = checkpoint.folder() / "generation_config.json";
  if (std::ifstream in{file, std::ios::binary}) {
    std::ostringstream text;
    text << in.rdbuf();
    try {
      add_stop_ids(parse_json(text.str(), {.bytes = 1u << 20}), ids);
    } catch (Error& error) {
      throw error.at(quote(file.string()));
    }
  }
  if (checkpoint.config().is_object()) add_stop_ids(checkpoint.config(), ids);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace graft
