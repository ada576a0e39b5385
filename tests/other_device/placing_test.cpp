#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <cstring>
#include <regex>
#include <set>

#include "../unit/models/folder.h"
#include "applying/staging.h"
#include "graft/generate.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "other_device.h"
#include "thrown_by.h"

namespace graft::tests {
namespace {

using test::contains;
using test::message_of;
using test::other_device;

Host plain_host() {
  HostOptions options;
  options.default_plugin_path = false;
  return Host(std::move(options));
}

/// The layer that a path lies in, else the path.
std::string part_of(const std::string& path) {
  static const std::regex layer(R"(^(.*\.(layers|h|layer)\.\d+)\..*)");
  std::smatch found;
  return std::regex_match(path, found, layer) ? found[1].str() : path;
}

/// Neighbouring parts on different devices.
DeviceMap scattered(const Plan& plan) {
  const c10::Device devices[] = {other_device(0), at::kCPU, other_device(1)};
  std::vector<DeviceMap::Place> places{{"", other_device(1)}};
  for (const auto& entry : plan.entries)
    if (const auto part = part_of(entry.spec.path); places.back().path != part)
      places.push_back({part, devices[places.size() % 3]});
  return DeviceMap(places);
}

LoadedModel load_on(const Host& host, const std::filesystem::path& folder, const DeviceMap& map) {
  LoadOptions options;
  options.device = map;
  return host.load(folder, options);
}

}  // namespace

TEST_CASE("a model of any architecture runs with its parts on several devices") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  for (const auto& name : architectures()) {
    CAPTURE(name);
    const auto folder = golden("arch/" + name);
    const auto plain = host.load(folder);
    const auto map = scattered(plain.plan);
    const auto loaded = load_on(host, folder, map);
    std::set<std::string> used;
    for (const auto& entry : loaded.plan.entries) {
      CAPTURE(entry.spec.path);
      CHECK(entry.spec.device == *map.of(entry.spec.path));
      const auto [parent, child] = get_module_from_name(loaded.model, entry.spec.path);
      for (const auto& tensor : parent->named_children()[child]->parameters(/*recurse=*/false))
        CHECK(tensor.device() == entry.spec.device);
      used.insert(entry.spec.device.str());
    }
    CHECK(used.size() == 3);
    const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
    const auto expected = forward(*plain.model, ids);
    CHECK(distance(forward(*loaded.model, ids).cpu(), expected) <= 2e-5);
    if (loaded.model->output() != Model::Output::logits) continue;
    const std::int64_t prompt[] = {5, 9, 2, 77};
    GenerateOptions how;
    how.max_new_tokens = 12;
    CHECK(generate(*loaded.model, prompt, how).ids == generate(*plain.model, prompt, how).ids);
  }
}

TEST_CASE("padding reaches layers on other devices") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  for (const std::string name : {"llama", "gpt2", "bert", "qwen2"}) {
    CAPTURE(name);
    const auto plain = host.load(golden("arch/" + name));
    const auto loaded = load_on(host, golden("arch/" + name), scattered(plain.plan));
    Batch batch;
    batch.input_ids = at::arange(12, at::kLong).view({2, 6});
    batch.attention_mask = at::ones({2, 6}, at::kLong);
    batch.attention_mask.select(0, 1).narrow(0, 0, 2).zero_();
    const auto expected = plain.model->forward(batch), found = loaded.model->forward(batch).cpu();
    CHECK(distance(found[0], expected[0]) <= 2e-5);
    CHECK(distance(found[1].narrow(0, 2, 4), expected[1].narrow(0, 2, 4)) <= 2e-5);
  }
}

TEST_CASE("a model on several devices is saved as it was read, and comes back to one device") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  const auto folder = golden("arch/qwen2");
  const auto plain = host.load(folder);
  const auto loaded = load_on(host, folder, scattered(plain.plan));
  const TemporaryFolder saved;
  host.save(loaded, saved.path() / "model");
  const auto again = Checkpoint::open(saved.path() / "model");
  for (const auto& info : plain.checkpoint.tensors()) {
    std::vector<char> before(info.bytes), after(info.bytes);
    plain.checkpoint.read(info, before.data());
    again.read(again.at(info.name), after.data());
    CHECK_MESSAGE(before == after, info.name);
  }
  loaded.model->to(at::kCPU);
  const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
  CHECK(forward(*loaded.model, ids).equal(forward(*plain.model, ids)));
}

TEST_CASE("a tied weight is on the devices of all its modules") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  const auto folder = golden("arch/gemma2");
  const auto plain = host.load(folder);
  REQUIRE_FALSE(plain.plan.tied.empty());
  auto loaded = load_on(
      host, folder,
      DeviceMap(std::vector<DeviceMap::Place>{{"", other_device(0)}, {"lm_head", other_device(1)}}));
  const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
  const auto logits = forward(*loaded.model, ids);
  CHECK(logits.device() == other_device(1));
  CHECK(distance(logits.cpu(), forward(*plain.model, ids)) <= 2e-5);
  host.dequantize(loaded, at::kBFloat16);  // nothing is quantized: all of it changes its dtype
  const auto shorter = forward(*loaded.model, ids);
  CHECK(shorter.device() == other_device(1));
  CHECK(distance(shorter.cpu(), forward(*plain.model, ids)) <= 0.1);
}

TEST_CASE("a whole model on another device needs no map") {
  const c10::InferenceMode guard;
  const Host host = plain_host();
  const auto folder = golden("arch/llama");
  const auto loaded = load_on(host, folder, other_device(0));
  for (const auto& tensor : loaded.model->parameters()) CHECK(tensor.device() == other_device(0));
  const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
  CHECK(distance(forward(*loaded.model, ids).cpu(), forward(*host.load(folder).model, ids)) <= 2e-5);
}

TEST_CASE("tensors reach a device through two pinned buffers, whole and in order") {
  const auto checkpoint = Checkpoint::open(golden("arch/llama"));
  const auto before = test::pinned_allocations();
  Staging staging(other_device(1), /*piece=*/100);
  for (const auto& info : checkpoint.tensors()) {
    const auto found = staging.read(checkpoint, info, 0, info.bytes, info.shape);
    CHECK(found.device() == other_device(1));
    std::vector<char> bytes(info.bytes);
    checkpoint.read(info, bytes.data());
    const auto on_cpu = found.cpu();
    CHECK_MESSAGE(std::memcmp(on_cpu.const_data_ptr(), bytes.data(), bytes.size()) == 0, info.name);
  }
  CHECK(test::pinned_allocations() - before == 2);
}

TEST_CASE("a quantized model is refused on a device that its method has no kernels for") {
  const Host host{HostOptions{}};
  const auto refusal = message_of([&] {
    load_on(host, golden("quant/gptq-w4-g32"),
            DeviceMap(std::vector<DeviceMap::Place>{{"", at::kCPU}, {"lm_head", other_device(0)}}));
  });
  CHECK(contains(refusal, "no plugin serves the method 'gptq' on the device 'other:0'"));
}

}  // namespace graft::tests
