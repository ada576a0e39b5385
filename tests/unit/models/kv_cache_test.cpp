#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "folder.h"
#include "graft/host.h"

namespace graft::tests {
namespace {

LoadedModel load(const std::string& name) {
  static const Host host{HostOptions{}};
  return host.load(golden("arch/" + name));
}

}  // namespace

TEST_CASE("a fixed cache gives the logits of one that grows, and grows again") {
  const c10::InferenceMode guard;
  for (const auto& name : architectures()) {
    CAPTURE(name);
    const auto loaded = load(name);
    Model& model = *loaded.model;
    if (model.cache_layers() == 0) continue;
    const auto ids = read_tensor(golden("arch/" + name) / "expected.safetensors", "input_ids");
    KvCache fixed(model.cache_layers()), grown(model.cache_layers());
    for (auto* cache : {&fixed, &grown}) forward(model, ids.narrow(1, 0, 6), cache);
    fixed.fix(9);
    const auto end = ids.size(1) - 2;
    for (std::int64_t i = 6; i < end; ++i) {
      if (i == fixed.fixed()->capacity) fixed.fix(i + 7);
      const auto token = ids.narrow(1, i, 1);
      CHECK(distance(forward(model, token, &fixed), forward(model, token, &grown)) <= 2e-5);
      fixed.advance();
      CHECK(fixed.length() == grown.length());
    }
    fixed.unfix();
    const auto more = ids.narrow(1, end, 2);
    CHECK(distance(forward(model, more, &fixed), forward(model, more, &grown)) <= 2e-5);
    CHECK(fixed.length() == ids.size(1));
  }
}

TEST_CASE("a step reads and writes a fixed cache where it lies") {
  const c10::InferenceMode guard;
  KvCache cache(1);
  at::manual_seed(3);
  cache.append(0, at::randn({1, 2, 5, 4}), at::randn({1, 2, 5, 4}));
  cache.fix(8);
  const auto* position = cache.fixed()->position.const_data_ptr<std::int64_t>();
  const void *keys = nullptr, *values = nullptr;
  for (std::int64_t i = 5; i < 8; ++i) {
    CHECK(*position == i);
    const auto k = at::randn({1, 2, 1, 4}), v = at::randn({1, 2, 1, 4});
    const auto [all_k, all_v] = cache.append(0, k, v);
    CHECK(all_k.sizes() == at::IntArrayRef{1, 2, 8, 4});
    CHECK(at::equal(all_k.narrow(2, i, 1), k));
    CHECK(at::equal(all_v.narrow(2, i, 1), v));
    if (keys) CHECK((keys == all_k.const_data_ptr() && values == all_v.const_data_ptr()));
    keys = all_k.const_data_ptr();
    values = all_v.const_data_ptr();
    cache.advance();
    CHECK(cache.fixed()->position.const_data_ptr<std::int64_t>() == position);
  }
}

TEST_CASE("a cache is fixed with entries and room for one more") {
  const c10::InferenceMode guard;
  KvCache cache(1);
  CHECK_THROWS_WITH_AS(cache.fix(8), doctest::Contains("an empty cache cannot be fixed"), Error);
  const auto entries = at::ones({1, 1, 3, 2});
  cache.append(0, entries, entries);
  CHECK_THROWS_WITH_AS(cache.fix(3), doctest::Contains("expected a capacity above 3, found 3"),
                       Error);
  CHECK(cache.fixed() == nullptr);
  cache.fix(4);
  CHECK(cache.fixed()->capacity == 4);
}

TEST_CASE("a fixed cache takes one token at a time, without a mask") {
  const c10::InferenceMode guard;
  const auto loaded = load("llama");
  KvCache cache(loaded.model->cache_layers());
  Batch batch;
  batch.cache = &cache;
  batch.input_ids = at::arange(4, at::kLong).unsqueeze(0);
  loaded.model->forward(batch);
  cache.fix(16);
  CHECK_THROWS_WITH_AS(loaded.model->forward(batch), doctest::Contains("one token at a time"),
                       Error);
  batch.input_ids = batch.input_ids.narrow(1, 0, 1);
  batch.attention_mask = at::ones({1, 5}, at::kLong);
  CHECK_THROWS_WITH_AS(loaded.model->forward(batch), doctest::Contains("without a mask"), Error);
}

}  // namespace graft::tests
