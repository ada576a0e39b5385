#include "calibrating/mixed_bits.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>

#include "calibrated_model.h"
#include "graft/module_graph.h"
#include "plugins/torch_threads.h"

using namespace graft;
using namespace graft::test;

namespace {

BitsChoices group(const char* name, std::uint64_t weights, std::map<int, double> errors) {
  BitsChoices out;
  out.modules = {name};
  for (const auto& [bits, error] : errors)
    out.by_bits[bits] = {weights * static_cast<std::uint64_t>(bits) / 8, error};
  return out;
}

}  // namespace

TEST_CASE("bits go where they lower the error most for their bytes, up to the limit") {
  const std::vector<BitsChoices> groups{group("even", 80, {{2, 0.10}, {4, 0.05}, {8, 0.01}}),
                                        group("easy", 80, {{2, 0.02}, {4, 0.01}, {8, 0.00}}),
                                        group("hard", 80, {{2, 0.90}, {4, 0.20}, {8, 0.01}})};
  using Bits = std::vector<int>;
  CHECK(choose_bits(groups, 60) == Bits{2, 2, 2});
  CHECK(choose_bits(groups, 80) == Bits{2, 2, 4});
  CHECK(choose_bits(groups, 119) == Bits{4, 2, 4});  // the whole way of "hard" does not fit
  CHECK(choose_bits(groups, 120) == Bits{2, 2, 8});
  CHECK(choose_bits(groups, 140) == Bits{4, 2, 8});
  CHECK(choose_bits(groups, 1000) == Bits{8, 8, 8});
  CHECK(contains(message_of([&] { choose_bits(groups, 59); }),
                 "expected at least 60 bytes of quantized modules, at most 240, found 59"));
}

TEST_CASE("more bits that lose more are not taken, and unknown errors count as the others' mean") {
  using Bits = std::vector<int>;
  CHECK(choose_bits({group("odd", 80, {{2, 0.1}, {4, 0.2}})}, 1000) == Bits{2});
  const std::vector<BitsChoices> groups{group("known", 80, {{2, 0.3}, {4, 0.1}}),
                                        group("no token", 40, {{2, -1}, {4, -1}})};
  CHECK(choose_bits(groups, 40) == Bits{2, 4});  // the same gain for half the bytes
  CHECK(choose_bits({group("no token", 40, {{2, -1}, {4, -1}})}, 1000) == Bits{2});
}

TEST_CASE("bits are chosen for each group within what a weight may take, and written as rules") {
  LoadOptions options;
  options.dtype = at::kFloat;
  options.quantization_config =
      parse_json(R"({"quant_method": "gptq", "group_size": 32, "desc_act": true})");
  options.calibration = random_ids(kLlama, 4, 48);
  const auto checkpoint = Checkpoint::open(kLlama);
  const auto settings = host().host->choose_bits(checkpoint, options, 5);
  REQUIRE(settings.find("dynamic"));
  auto chosen = options;
  chosen.quantization_config = settings;
  const auto loaded = host().host->load(checkpoint, chosen);
  CHECK(loaded.plan.bits_per_weight() <= 5);
  CHECK(loaded.plan.bits_per_weight() > 4.5);
  std::map<std::string, std::string> made;
  std::set<std::string> all;
  for (const auto& entry : loaded.plan.entries)
    if (entry.action == Action::quantize) all.insert(made[entry.spec.path] = entry.settings);
  CHECK(all.size() > 1);
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    // Runtimes that fuse them read them as one.
    CHECK(made[layer + "self_attn.q_proj"] == made[layer + "self_attn.k_proj"]);
    CHECK(made[layer + "self_attn.q_proj"] == made[layer + "self_attn.v_proj"]);
    CHECK(made[layer + "mlp.gate_proj"] == made[layer + "mlp.up_proj"]);
  }
  const auto ids = random_ids(kLlama, 1, 8);
  const TemporaryFolder out;
  host().host->save(loaded, out.path() / "m");
  LoadOptions again;
  again.dtype = at::kFloat;
  CHECK(logits(host().host->load(out.path() / "m", again), ids).equal(logits(loaded, ids)));

  // More than there is gives the most bits everywhere, and needs no rules.
  const auto most = host().host->choose_bits(checkpoint, options, HUGE_VAL);
  CHECK(most.at("bits").as_int() == 8);
  CHECK_FALSE(most.find("dynamic"));
  CHECK(contains(message_of([&] { host().host->choose_bits(checkpoint, options, 2); }),
                 "no choice of bits is as small as that: expected at least "));
  options.quantization_config = settings;
  CHECK(contains(message_of([&] { host().host->choose_bits(checkpoint, options, 5); }),
                 "field 'dynamic': bits cannot be chosen beside rules for modules"));
  for (const std::size_t method : {4U, 5U}) {
    options.quantization_config = parse_json(kSettings[method]);
    CHECK(contains(message_of([&] { host().host->choose_bits(checkpoint, options, 5); }),
                   "the method's modules all have the same bits"));
  }
  // What is wrong with the settings is said as ever.
  options.quantization_config = parse_json(R"({"quant_method": "gptq", "group_size": -3})");
  CHECK(contains(message_of([&] { host().host->choose_bits(checkpoint, options, 5); }),
                 "field 'group_size'"));
}

TEST_CASE("modules that the model makes nothing of get the fewest bits, whatever their own error") {
  LoadOptions dense;
  dense.dtype = at::kFloat;
  const auto model = host().host->load(kLlama, dense);
  const auto [mlp, name] = get_module_from_name(model.model, "model.layers.1.mlp.down_proj");
  const auto down = std::dynamic_pointer_cast<nn::Block>(*mlp->named_children().find(name));
  down->set_tensor("weight", at::zeros_like(down->own_tensors().front().second));
  const TemporaryFolder out;
  host().host->save(model, out.path() / "m");

  const auto checkpoint = Checkpoint::open(out.path() / "m");
  auto options = dense;
  options.quantization_config = parse_json(R"({"quant_method": "gptq", "group_size": 32})");
  options.calibration = random_ids(kLlama, 4, 48);
  options.quantization_config = host().host->choose_bits(checkpoint, options, 5);
  std::map<std::string, std::string> made;
  for (const auto& entry : host().host->plan(checkpoint, options).entries)
    if (entry.action == Action::quantize) made[entry.spec.path] = entry.settings;
  for (const std::string one : {"mlp.gate_proj", "mlp.up_proj"}) {
    CHECK(contains(made["model.layers.1." + one], "2 bit"));
    CHECK_FALSE(contains(made["model.layers.0." + one], "2 bit"));
  }
}

TEST_CASE("bits are chosen for Conv1D, for experts, and by outputs alone where there are no logits") {
  for (const std::string name : {"gpt2", "qwen3_moe", "bert"}) {
    CAPTURE(name);
    const auto checkpoint = Checkpoint::open(kGolden / "arch" / name);
    LoadOptions options;
    options.dtype = at::kFloat;
    options.quantization_config = parse_json(R"({"quant_method": "gptq", "group_size": 32})");
    options.calibration = random_ids(kGolden / "arch" / name, 4, 48);
    options.quantization_config = host().host->choose_bits(checkpoint, options, 5);
    const auto plan = host().host->plan(checkpoint, options);
    CHECK(plan.bits_per_weight() <= 5);
    CHECK(plan.bits_per_weight() > 4);
  }
}

TEST_CASE("the bits chosen do not depend on the number of threads") {
  LoadOptions options;
  options.dtype = at::kBFloat16;
  options.quantization_config = parse_json(R"({"quant_method": "gptq", "group_size": 32})");
  options.calibration = random_ids(kLlama, 6, 160);
  const auto checkpoint = Checkpoint::open(kLlama);
  std::vector<std::string> chosen;
  for (const int threads : {1, 2}) {
    const TorchThreads limit(threads);
    chosen.push_back(to_json(host().host->choose_bits(checkpoint, options, 4)));
  }
  CHECK(chosen[0] == chosen[1]);
}
