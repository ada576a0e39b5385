#include "graft/device_map.h"

#include <doctest/doctest.h>

#include <map>

#include "graft/host.h"
#include "model_folder.h"
#include "thrown_by.h"

namespace graft::tests {
namespace {

using test::contains;
using test::golden;
using test::message_of;

DeviceMap read(const std::string& json, const std::string& max_memory = "null") {
  return DeviceMap::from_value(parse_json(json), parse_json(max_memory));
}

Plan plan_of(const std::string& folder, const DeviceMap& map) {
  static const Host host{HostOptions{}};
  LoadOptions options;
  options.device = map;
  return host.plan(Checkpoint::open(golden(folder)), options);
}

/// Device of each part and how much it holds.
std::map<std::string, std::uint64_t> bytes_on(const Plan& plan) {
  std::map<std::string, std::uint64_t> out;
  for (const auto& entry : plan.entries) out[entry.spec.device.str()] += entry.bytes_after;
  return out;
}

std::string device_of(const Plan& plan, const std::string& path) {
  for (const auto& entry : plan.entries)
    if (entry.spec.path == path) return entry.spec.device.str();
  return "nowhere";
}

}  // namespace

TEST_CASE("the longest path of a device map counts, by whole names") {
  const auto map = read(R"({"": "cpu", "model.layers": 1, "model.layers.1": "cuda:2"})");
  CHECK(map.of("lm_head") == c10::Device("cpu"));
  CHECK(map.of("model.layers") == c10::Device("cuda:1"));
  CHECK(map.of("model.layers.0.mlp") == c10::Device("cuda:1"));
  CHECK(map.of("model.layers.1.mlp.up_proj") == c10::Device("cuda:2"));
  CHECK(map.of("model.layers.10.mlp") == c10::Device("cuda:1"));
  CHECK(map.of("model.layersx") == c10::Device("cpu"));
  CHECK_FALSE(read(R"({"model.norm": "cpu"})").of("model.normal"));
}

TEST_CASE("a device has many names, and a map need not be an object") {
  CHECK(read(R"("cuda")").of("x") == c10::Device("cuda:0"));
  CHECK(read(R"("1")").of("x") == c10::Device("cuda:1"));
  CHECK(read("0").of("x") == c10::Device("cuda:0"));
  CHECK(read(R"("cpu")").devices().size() == 1);
  CHECK(read(R"({"a": "cuda", "b": 0, "c": "cuda:0"})").devices().size() == 1);
  CHECK_FALSE(read(R"({"a": 0, "b": 1})").offloads());
  CHECK_FALSE(read(R"({"a": "cpu", "b": "cpu"})").offloads());
  CHECK(read(R"({"a": 0, "b": "cpu"})").offloads());
}

TEST_CASE("impossible device maps are refused") {
  const auto refusal = [](const std::string& json, const std::string& most = "null") {
    return message_of([&] { read(json, most); });
  };
  CHECK(contains(refusal(R"({"model.layers.3": "disk"})"),
                 "device map: 'model.layers.3': parts of a model cannot stay on the disk"));
  CHECK(contains(refusal(R"({"": "tpu"})"), "unknown device"));
  CHECK(contains(refusal(R"({"": "mps"})"), "found 'mps'"));
  CHECK(contains(refusal(R"({"": -1})"), "found '-1'"));
  CHECK(contains(refusal(R"({"": 4096})"), "found '4096'"));
  CHECK(contains(refusal(R"({"": true})"), "found 'true'"));
  CHECK(contains(refusal(R"("fastest")"), "found 'fastest'"));
  CHECK(contains(refusal("{}"), "the device map is empty"));
  CHECK(contains(refusal("[]"), "found '[]'"));
  CHECK(contains(refusal(R"({"": 0})", R"({"0": "1GB"})"), "max_memory has no effect"));
  CHECK(contains(refusal(R"("auto")", R"({"0": "much"})"), "max_memory: '0'"));
  CHECK(contains(refusal(R"("auto")", R"({"0": "99999999TiB"})"), "max_memory: '0'"));
  CHECK(contains(refusal(R"("auto")", R"({"0": "1 GB"})"), "found '1 GB'"));
  CHECK(contains(refusal(R"("auto")", R"({"0": "-1GB"})"), "unknown size"));
  CHECK(contains(refusal(R"("auto")", R"({"0": -5})"), "unknown size"));
  CHECK(contains(refusal(R"("auto")", R"({"disk": "1GB"})"), "cannot stay on the disk"));
  CHECK(contains(refusal(R"("auto")", R"("1GB")"), "no object of devices and sizes"));
  CHECK(contains(refusal(R"("auto")", "{}"), "no object of devices and sizes"));
}

TEST_CASE("a device map has to fit the model") {
  const auto refusal = [](const std::string& json) {
    return message_of([&] { plan_of("arch/llama", read(json)); });
  };
  CHECK(contains(refusal(R"({"model": 0})"), "no device for a part of the model"));
  CHECK(contains(refusal(R"({"model": 0})"), "lm_head"));
  CHECK(contains(refusal(R"({"": 0, "model.layer.0": "cpu"})"), "did you mean"));
  CHECK(contains(refusal(R"({"": 0, "model.layers.0.mlp": "cpu"})"),
                 "expected a device for all of 'model.layers.0'"));
  CHECK(contains(refusal(R"({"": 0, "model.layers.99": "cpu"})"), "does not have"));
  CHECK_NOTHROW(plan_of("arch/llama", read(R"({"": 0, "model.layers.0.mlp": 0})")));
}

TEST_CASE("a spread fills devices in order, and leaves the rest to the CPU") {
  const auto whole = plan_of("arch/llama", DeviceMap());
  const auto total = whole.bytes_after();
  const auto text = [](std::uint64_t bytes) { return std::to_string(bytes); };
  for (const std::string how : {R"("sequential")", R"("auto")"}) {
    CAPTURE(how);
    const auto plan =
        plan_of("arch/llama", read(how, "{\"0\": " + text(total / 2) + ", \"cpu\": \"1GB\"}"));
    const auto on = bytes_on(plan);
    REQUIRE(on.size() == 2);
    CHECK(on.at("cuda:0") <= total / 2);
    CHECK(on.at("cuda:0") > 0);
    CHECK(on.at("cuda:0") + on.at("cpu") == total);
    CHECK(device_of(plan, "model.embed_tokens") == "cuda:0");
    CHECK(device_of(plan, "model.norm") == "cpu");
  }
}

TEST_CASE("a balanced spread gives each GPU about the same, a sequential one fills the first") {
  const auto total = plan_of("arch/llama", DeviceMap()).bytes_after();
  const std::string room = R"({"0": "1GB", "1": "1GB"})";
  const auto first = bytes_on(plan_of("arch/llama", read(R"("sequential")", room)));
  CHECK(first == std::map<std::string, std::uint64_t>{{"cuda:0", total}});
  const auto both = bytes_on(plan_of("arch/llama", read(R"("balanced")", room)));
  REQUIRE(both.size() == 2);
  for (const auto& [device, bytes] : both) {
    CAPTURE(device);
    CHECK(bytes >= total / 4);
    CHECK(bytes <= total * 3 / 4);
  }
}

TEST_CASE("a tied head goes where the embedding goes") {
  const auto total = plan_of("arch/gemma2", DeviceMap()).bytes_after();
  const auto plan = plan_of(
      "arch/gemma2",
      read(R"("auto")", "{\"0\": " + std::to_string(total * 3 / 4) + ", \"cpu\": \"1GB\"}"));
  CHECK(plan.devices.of("model.embed_tokens") == c10::Device("cuda:0"));
  CHECK(plan.devices.of("model.norm") == c10::Device("cpu"));
  CHECK(plan.devices.of("lm_head") == c10::Device("cuda:0"));
}

TEST_CASE("what a quantized checkpoint has on the CPU beside a GPU stays quantized") {
  const Host host{HostOptions{}};
  LoadOptions options;
  options.device = read(R"({"": 0, "model.layers.1": "cpu"})");
  options.quantization_config = parse_json(R"({"llm_int8_enable_fp32_cpu_offload": true})");
  try {
    const auto plan = host.plan(Checkpoint::open(golden("vectors/tiny_llama_bnb_nf4_dq")), options);
    for (const auto& entry : plan.entries)
      if (entry.spec.path.ends_with("up_proj")) CHECK(entry.action == Action::quantize);
    CHECK(device_of(plan, "model.layers.1.mlp.up_proj") == "cpu");
  } catch (const Error& error) {
    REQUIRE(contains(error.what(), "no plugin serves the method"));
    MESSAGE("skipped: no plugin of this build has kernels for CUDA");
  }
}

TEST_CASE("a model that does not fit is refused with what is there") {
  const auto refusal = message_of(
      [] { plan_of("arch/llama", read(R"("auto")", R"({"0": "10KB", "cpu": "10KB"})")); });
  CHECK(contains(refusal, "does not fit into the memory it may use"));
  CHECK(contains(refusal, "cuda:0 0.000 GB, cpu 0.000 GB"));
}

}  // namespace graft::tests
