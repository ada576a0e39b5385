#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "folder.h"
#include "graft/host.h"

namespace graft::tests {
namespace {

Host plain_host() {
  HostOptions options;
  options.default_plugin_path = false;
  return Host(std::move(options));
}

/// Greedy continuation of `prompt` [1, T] up to `length` tokens.
at::Tensor generate(Model& model, at::Tensor ids, std::int64_t length, bool with_cache) {
  KvCache cache(model.cache_layers());
  auto next = ids;
  while (ids.size(1) < length) {
    const auto logits = with_cache ? forward(model, next, &cache) : forward(model, ids);
    next = logits.select(1, logits.size(1) - 1).argmax(-1, /*keepdim=*/true);
    ids = at::cat({ids, next}, 1);
  }
  return ids;
}

}  // namespace

TEST_CASE("every architecture agrees with Transformers") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  for (const auto& name : architectures()) {
    CAPTURE(name);
    const auto folder = golden("arch/" + name);
    const auto loaded = host.load(folder);
    CHECK(loaded.plan.unexpected.empty());
    CHECK(loaded.plan.bytes_taken() == loaded.checkpoint.total_bytes());
    const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
    const bool encoder = loaded.model->output() == Model::Output::last_hidden_state;
    const auto expected =
        read_tensor(folder / "expected.safetensors", encoder ? "last_hidden_state" : "logits");
    const double difference = distance(forward(*loaded.model, ids), expected);
    MESSAGE(name << ": largest difference " << difference);
    CHECK(difference <= 2e-5);
    if (encoder) continue;
    const auto generated = read_tensor(folder / "expected.safetensors", "generated_ids");
    const auto prompt = ids.narrow(0, 0, 1).narrow(1, 0, 8);
    CHECK(at::equal(generate(*loaded.model, prompt, generated.size(1), false), generated));
    CHECK(at::equal(generate(*loaded.model, prompt, generated.size(1), true), generated));
  }
}

TEST_CASE("a cache filled in pieces gives the logits of one pass") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  for (const auto& name : architectures()) {
    CAPTURE(name);
    const auto folder = golden("arch/" + name);
    const auto loaded = host.load(folder);
    if (loaded.model->cache_layers() == 0) continue;
    const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
    const auto whole = forward(*loaded.model, ids);
    KvCache cache(loaded.model->cache_layers());
    std::vector<at::Tensor> pieces;
    std::int64_t start = 0;
    for (const std::int64_t count : {11, 6, 1, 1, 5}) {
      pieces.push_back(forward(*loaded.model, ids.narrow(1, start, count), &cache));
      start += count;
    }
    CHECK(distance(at::cat(pieces, 1), whole) <= 2e-5);
  }
}

TEST_CASE("logits do not depend on how many positions come behind them") {
  const c10::InferenceMode guard;
  const auto loaded = plain_host().load(golden("arch/llama"));
  at::manual_seed(2);
  const auto ids = at::randint(128, {2, 600}, at::kLong);
  const auto whole = forward(*loaded.model, ids);
  for (const std::int64_t length : {1, 100, 129, 300, 512}) {
    CAPTURE(length);
    CHECK(distance(forward(*loaded.model, ids.narrow(1, 0, length)),
                   whole.narrow(1, 0, length)) <= 2e-5);
  }
}

}  // namespace graft::tests
