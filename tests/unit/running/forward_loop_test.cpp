#include "running/forward_loop.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "../models/folder.h"
#include "graft/host.h"
#include "tape.h"

namespace graft::tests {
namespace {

const std::vector<std::string> kRecorded{"gemma2",  "gemma3_text", "gpt2", "llama", "llama31",
                                         "mistral", "olmo2",       "opt",  "phi3",  "qwen2",
                                         "qwen3"};

LoadedModel load(const std::string& name, at::ScalarType dtype = at::kFloat) {
  static const Host host{HostOptions{}};
  LoadOptions options;
  options.dtype = dtype;
  return host.load(golden("arch/" + name), options);
}

at::Tensor tensor(std::span<const float> logits) {
  return at::from_blob(const_cast<float*>(logits.data()),
                       {static_cast<std::int64_t>(logits.size())}, at::kFloat)
      .clone();
}

/// A recorder that its owner can be asked about.
struct Watched {
  Tape* tape = new Tape;
  std::unique_ptr<Recorder> recorder{tape};
};

/// What a loop says, one message a line behind its level.
struct Told {
  std::string text;
  Context context() {
    Context out;
    out.log = [this](LogLevel level, std::string_view, std::string_view message) {
      text.append(level == LogLevel::warning ? "warning: " : "info: ").append(message).append("\n");
    };
    return out;
  }
};

const std::vector<std::int64_t> kPrompt{3, 17, 29, 5, 11};

/// Writes on behind kPrompt with the likeliest tokens of the ordinary step, `steps` of them, and
/// gives the largest difference of the logits of `loop`, over the largest logit.
double difference(Model& model, ForwardLoop& loop, int steps) {
  ForwardLoop ordinary(model, nullptr, {});
  auto ids = kPrompt;
  double most = 0;
  for (int i = 0; i <= steps; ++i) {
    const auto expected = tensor(ordinary.next(ids)), found = tensor(loop.next(ids));
    most = std::max(most, distance(found, expected) / expected.abs().max().item<double>());
    ids = {expected.argmax().item<std::int64_t>()};
  }
  return most;
}

}  // namespace

TEST_CASE("a recorded step gives the logits of the ordinary one, as the text grows") {
  const c10::InferenceMode guard;
  for (const auto& name : kRecorded) {
    CAPTURE(name);
    const auto loaded = load(name);
    CHECK(ForwardLoop::obstacle(*loaded.model) == "");
    Watched watched;
    ForwardLoop loop(*loaded.model, std::move(watched.recorder), {}, 16);
    const double found = difference(*loaded.model, loop, 60);
    MESSAGE(name << ": largest difference " << found);
    CHECK(found <= 2e-5);
    CHECK(watched.tape->records == 4);  // of 16, 32, 64 and 128 entries
    CHECK(watched.tape->replays == 60);
  }
}

TEST_CASE("in bfloat16 and float16 a recorded step rounds where the ordinary one does") {
  const c10::InferenceMode guard;
  for (const auto& name : kRecorded)
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      CAPTURE(name);
      const auto loaded = load(name, dtype);
      Watched watched;
      ForwardLoop loop(*loaded.model, std::move(watched.recorder), {}, 16);
      const double found = difference(*loaded.model, loop, 30);
      MESSAGE(name << ", " << std::string(c10::toString(dtype)) << ": " << found);
      CHECK(found <= (dtype == at::kHalf ? 4e-3 : 3e-2));
    }
}

TEST_CASE("text of recorded steps is that of Transformers") {
  const c10::InferenceMode guard;
  for (const auto& name : kRecorded) {
    CAPTURE(name);
    const auto loaded = load(name);
    const auto file = golden("arch/" + name) / "expected.safetensors";
    const auto expected = read_tensor(file, "generated_ids").view({-1}).contiguous();
    const auto* id = expected.const_data_ptr<std::int64_t>();
    ForwardLoop loop(*loaded.model, std::make_unique<Tape>(), {});
    auto next = tensor(loop.next(std::span(id, 8))).argmax().item<std::int64_t>();
    for (std::int64_t i = 8; i < expected.numel(); ++i) {
      CHECK(next == id[i]);
      next = tensor(loop.next(std::span(&next, 1))).argmax().item<std::int64_t>();
    }
  }
}

TEST_CASE("several tokens behind recorded steps go through the model as ever") {
  const c10::InferenceMode guard;
  const auto loaded = load("mistral");
  Watched watched;
  ForwardLoop loop(*loaded.model, std::move(watched.recorder), {}, 16);
  ForwardLoop ordinary(*loaded.model, nullptr, {});
  const std::vector<std::int64_t> ids{3, 17, 29, 5, 11, 8, 9, 1, 2,
                                      7, 41, 23, 4, 90, 2, 6, 7, 31};
  std::size_t done = 0;
  for (const std::size_t count : {4, 1, 1, 5, 1, 1, 1, 3, 1}) {
    const auto piece = std::span(ids).subspan(done, count);
    CHECK(distance(tensor(loop.next(piece)), tensor(ordinary.next(piece))) <= 2e-5);
    done += count;
  }
  CHECK(watched.tape->replays == 6);
}

TEST_CASE("steps that cannot be recorded are run as ever, and why is said once") {
  const c10::InferenceMode guard;
  const auto runs_without = [](Model& model, const std::string& why) {
    CHECK(ForwardLoop::obstacle(model) == why);
    Told told;
    Watched watched;
    ForwardLoop loop(model, std::move(watched.recorder), told.context(), 16);
    CHECK(difference(model, loop, 20) == 0);
    CHECK(told.text == "info: every token is launched piece by piece: " + why + "\n");
  };
  for (const std::string name :
       {"deepseek_v3", "gpt_oss", "llama4_text", "mixtral", "qwen2_moe", "qwen3_moe"}) {
    CAPTURE(name);
    runs_without(*load(name).model, "which experts run is decided on the host");
  }
  const test::ModelFolder folder(
      "arch/llama", {{"rope_parameters", parse_json(R"({"rope_type": "dynamic", "factor": 2.0,
                                                       "rope_theta": 10000.0})")}});
  const auto dynamic = Host{HostOptions{}}.load(folder.path());
  runs_without(*dynamic.model, "positions change with the length of the text");
}

TEST_CASE("an encoder and a model on several devices have no step to record") {
  CHECK(ForwardLoop::obstacle(*load("bert").model) == "the model is no decoder");
  const auto loaded = load("llama");
  std::dynamic_pointer_cast<nn::Block>(loaded.model->child("lm_head"))
      ->set_execution_device(c10::Device(at::kCPU));
  CHECK(ForwardLoop::obstacle(*loaded.model) == "the model lies on several devices");
}

TEST_CASE("when a recording fails the ordinary step goes on, and why is said once") {
  const c10::InferenceMode guard;
  /// Runs what it is given, up to the end or not at all, and keeps nothing.
  struct Refusing : Recorder {
    bool runs = true;
    std::string record(const std::function<void()>& work) override {
      if (runs) work();
      return "an operation is not permitted";
    }
    void replay() override { FAIL("nothing was recorded"); }
  };
  for (const bool runs : {true, false})
    for (const std::string name : {"llama", "gemma2", "gpt2"}) {
      CAPTURE(name);
      const auto loaded = load(name);
      auto recorder = std::make_unique<Refusing>();
      recorder->runs = runs;
      Told told;
      ForwardLoop loop(*loaded.model, std::move(recorder), told.context(), 16);
      CHECK(difference(*loaded.model, loop, 40) == 0);
      CHECK(told.text ==
            "warning: every token is launched piece by piece: an operation is not permitted\n");
    }
}

TEST_CASE("recorded steps end where learned positions end, and refuse unknown ids") {
  const c10::InferenceMode guard;
  for (const std::string name : {"gpt2", "opt"}) {
    CAPTURE(name);
    const auto loaded = load(name);
    REQUIRE(loaded.model->positions());
    const std::int64_t beyond = 2 * *loaded.model->positions();
    ForwardLoop loop(*loaded.model, std::make_unique<Tape>(), {}, beyond);
    loop.next(kPrompt);
    const std::int64_t id = 7, unknown = 1 << 20;
    CHECK_THROWS_WITH_AS(loop.next(std::span(&unknown, 1)), doctest::Contains("vocabulary"), Error);
    for (auto i = static_cast<std::int64_t>(kPrompt.size()); i < *loaded.model->positions(); ++i)
      loop.next(std::span(&id, 1));
    for (int again = 0; again < 2; ++again)
      CHECK_THROWS_WITH_AS(loop.next(std::span(&id, 1)),
                           doctest::Contains("longer than the model's positions"), Error);
  }
}

TEST_CASE("on the CPU nothing is recorded, and nothing is said of it") {
  const c10::InferenceMode guard;
  const auto loaded = load("gemma2");
  Told told;
  const auto loop = ForwardLoop::of(*loaded.model, told.context());
  CHECK(difference(*loaded.model, *loop, 5) == 0);
  CHECK(told.text.empty());
}

}  // namespace graft::tests
