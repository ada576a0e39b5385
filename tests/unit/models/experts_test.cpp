#include "graft/nn/experts.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "folder.h"
#include "graft/host.h"
#include "graft/module_graph.h"

namespace graft::tests {
namespace {

const std::vector<std::string> kWithExperts{"deepseek_v3", "gpt_oss",   "llama4_text",
                                            "mixtral",     "qwen2_moe", "qwen3_moe"};

Value nf4() { return parse_json(R"({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})"); }
Value int8() { return parse_json(R"({"load_in_8bit": true})"); }

Value with_method(Value settings) {
  settings.set("quant_method", "bitsandbytes");
  return settings;
}

std::uint64_t expert_bytes(const Plan& plan, bool quantized_only) {
  std::uint64_t bytes = 0;
  for (const auto& entry : plan.entries)
    if (entry.spec.path.find(".experts") != std::string::npos &&
        (!quantized_only || entry.action == Action::quantize))
      bytes += entry.bytes_before;
  return bytes;
}

std::string experts_class(const std::string& architecture) {
  if (architecture == "deepseek_v3") return "DeepseekV3Experts";
  if (architecture == "gpt_oss") return "GptOssExperts";
  if (architecture == "llama4_text") return "Llama4TextExperts";
  if (architecture == "mixtral") return "MixtralExperts";
  return architecture == "qwen2_moe" ? "Qwen2MoeExperts" : "Qwen3MoeExperts";
}

/// A model whose only part is a block of experts, somewhere else than its family has it.
struct Elsewhere : Model {
  Elsewhere(const Value& config, std::shared_ptr<nn::Experts> experts)
      : Model("Elsewhere", config), block_sparse_moe(*this, "block_sparse_moe", holder(experts)) {}

  struct Holder : nn::Block {
    explicit Holder(std::shared_ptr<nn::Experts> inner)
        : Block("Holder"), experts(*this, "experts", std::move(inner)) {}
    nn::Slot<nn::Experts> experts;
  };
  static std::shared_ptr<Holder> holder(std::shared_ptr<nn::Experts> experts) {
    return std::make_shared<Holder>(std::move(experts));
  }

  Output output() const override { return Output::logits; }
  at::Tensor forward(const Batch& batch) override { return batch.input_ids; }
  std::size_t cache_layers() const override { return 0; }
  std::vector<InputGroup> input_groups() const override { return {}; }

  nn::Slot<Holder> block_sparse_moe;
};

}  // namespace

TEST_CASE("a quantized model is what is saved and loaded again, experts included") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  for (const auto& name : architectures())
    for (const bool four_bit : {true, false}) {
      CAPTURE(name);
      CAPTURE(four_bit);
      const auto folder = golden("arch/" + name);
      LoadOptions options;
      options.quantization_config = with_method(four_bit ? nf4() : int8());
      const auto made = host.load(folder, options);
      const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
      const auto before = forward(*made.model, ids);
      const auto saved = out.path() / (name + (four_bit ? "-nf4" : "-int8"));
      host.save(made, saved);
      const auto again = host.load(saved);
      CHECK(again.plan.pre_quantized);
      CHECK(again.plan.unexpected.empty());
      CHECK(again.plan.bytes_taken() == again.checkpoint.total_bytes());
      CHECK(again.plan.count(Action::quantize) == made.plan.count(Action::quantize));
      CHECK(made.plan.count(Action::quantize) > 0);
      CHECK(at::equal(forward(*again.model, ids), before));
      const auto all = expert_bytes(made.plan, false);
      if (all == 0) continue;
      const double share =
          static_cast<double>(expert_bytes(made.plan, true)) / static_cast<double>(all);
      MESSAGE(name << std::string(four_bit ? " nf4: " : " int8: ") << 100 * share
                   << " % of the expert bytes are quantized");
      CHECK(share > 0.95);
    }
}

TEST_CASE("a router stays dense, and one that comes quantized is read as it is") {
  const c10::InferenceMode guard;
  const auto folder = golden("arch/qwen3_moe");
  const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
  LoadOptions options;
  options.quantization_config = with_method(nf4());
  const auto routers = [](const Plan& plan) {
    std::size_t quantized = 0;
    for (const auto& entry : plan.entries)
      quantized += entry.spec.path.ends_with(".mlp.gate") && entry.action == Action::quantize;
    return quantized;
  };
  const Host host;
  CHECK(routers(host.load(folder, options).plan) == 0);

  Host bold;
  bold.add_patch(
      "{class: Qwen3MoeTopKRouter, methods: [bitsandbytes], match: \"*.mlp.gate\", "
      "replacement: Linear4bit}");
  const auto made = bold.load(folder, options);
  REQUIRE(routers(made.plan) > 0);
  const TemporaryFolder out;
  bold.save(made, out.path() / "m");
  const auto again = host.load(out.path() / "m");
  CHECK(routers(again.plan) == routers(made.plan));
  CHECK(at::equal(forward(*again.model, ids), forward(*made.model, ids)));
}

TEST_CASE("a restructuring alone keeps experts, interface and numbers") {
  const c10::InferenceMode guard;
  const Host host;
  for (const auto& name : kWithExperts) {
    CAPTURE(name);
    const auto folder = golden("arch/" + name);
    const auto loaded = host.load(folder);
    const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
    const auto dense = forward(*loaded.model, ids);
    std::string path;
    for (const auto& [at, module] : named_modules(loaded.model))
      if (class_name_of(*module) == experts_class(name) && path.empty()) path = at;
    REQUIRE_FALSE(path.empty());
    const auto block = [&] {
      const auto [parent, child] = get_module_from_name(loaded.model, path);
      return std::dynamic_pointer_cast<nn::Experts>(dynamic_cast<nn::Block&>(*parent).child(child));
    };
    const auto fused = block();
    const auto x = at::randn({7, 64});
    const auto expert_ids = at::randint(fused->size(), {7, 2}, at::kLong);
    const auto weights = at::rand({7, 2});
    const auto before = fused->forward(x, expert_ids, weights);
    const auto blocks = count(loaded.model, experts_class(name));

    auto quantizer = ModelQuantizer::from_config(host, with_method(nf4()), false);
    quantizer.set_predicate([&](const ModuleSpec& spec) { return spec.class_name != "Linear"; });
    quantizer.make_plan(loaded.model);
    CHECK(count(loaded.model, "Sequential" + experts_class(name)) == blocks);
    CHECK(count(loaded.model, experts_class(name)) == 0);
    const auto separate = block();
    REQUIRE(separate);
    CHECK(separate->size() == fused->size());
    const auto after = separate->forward(x, expert_ids, weights);
    CHECK(after.sizes() == before.sizes());
    CHECK(distance(after, before) <= 1e-5);
    CHECK(distance(forward(*loaded.model, ids), dense) <= 1e-5);
  }
}

TEST_CASE("a model in memory becomes what the same folder read and quantized becomes") {
  const c10::InferenceMode guard;
  const Host host;
  for (const std::string name : {"mixtral", "llama4_text", "gpt_oss", "gpt2"}) {
    CAPTURE(name);
    const auto folder = golden("arch/" + name);
    const auto ids = read_tensor(folder / "expected.safetensors", "input_ids");
    LoadOptions options;
    options.quantization_config = with_method(nf4());
    const auto streamed = host.load(folder, options);
    const auto dense = host.load(folder);
    auto quantizer = ModelQuantizer::from_config(host, with_method(nf4()), false);
    quantizer.preprocess_model(dense.model, nullptr);
    quantizer.postprocess_model(dense.model, Context{});
    CHECK(at::equal(forward(*dense.model, ids), forward(*streamed.model, ids)));
  }
}

TEST_CASE("the class decides about experts, not their path") {
  const c10::InferenceMode guard;
  const Host host;
  const auto loaded = host.load(golden("arch/llama4_text"));
  const auto [parent, child] =
      get_module_from_name(loaded.model, "model.layers.1.feed_forward.experts");
  const auto experts =
      std::dynamic_pointer_cast<nn::Experts>(dynamic_cast<nn::Block&>(*parent).child(child));
  const auto elsewhere = std::make_shared<Elsewhere>(loaded.model->config(), experts);
  const auto x = at::randn({5, 64});
  const auto ids = at::randint(4, {5, 1}, at::kLong);
  const auto weights = at::rand({5, 1});
  const auto before = experts->forward(x, ids, weights);
  auto quantizer = ModelQuantizer::from_config(host, with_method(int8()), false);
  const Plan& plan = quantizer.make_plan(elsewhere);
  CHECK(plan.count(Action::restructure) == 1);
  CHECK(plan.entries.front().spec.path == "block_sparse_moe.experts");
  CHECK(plan.entries.front().replacement == "SequentialLlama4TextExperts");
  CHECK(distance(elsewhere->block_sparse_moe->experts->forward(x, ids, weights), before) <= 1e-5);
}

TEST_CASE("experts per part and in one piece agree with the files of Transformers") {
  const c10::InferenceMode guard;
  const Host host;
  for (const std::string name : {"tiny_qwen3moe_dense_fp16", "tiny_llama4_text_dense_fp16"}) {
    CAPTURE(name);
    const auto folder = golden("vectors/" + name);
    LoadOptions options;
    options.dtype = at::kFloat;
    const auto loaded = host.load(folder, options);
    const auto ids = read_tensor(folder / "reference.safetensors", "input_ids");
    const auto expected = read_tensor(folder / "reference.safetensors", "logits_f32");
    const double difference = distance(forward(*loaded.model, ids), expected);
    MESSAGE(name << ": largest difference " << difference);
    CHECK(difference <= 1e-5);
  }
}

TEST_CASE("a dense model is saved under the names it came with") {
  const Host host;
  const TemporaryFolder out;
  for (const auto& name : architectures()) {
    CAPTURE(name);
    const auto loaded = host.load(golden("arch/" + name));
    host.save(loaded, out.path() / name);
    const auto saved = Checkpoint::open(out.path() / name);
    REQUIRE(saved.tensors().size() == loaded.checkpoint.tensors().size());
    for (const auto& info : loaded.checkpoint.tensors()) {
      CAPTURE(info.name);
      REQUIRE(saved.find(info.name));
      CHECK(at::equal(read_tensor(out.path() / name / "model.safetensors", info.name),
                      read_tensor(golden("arch/" + name) / "model.safetensors", info.name)));
    }
  }
}

TEST_CASE("an expert that does not exist is refused") {
  const c10::InferenceMode guard;
  const Host host;
  const auto loaded = host.load(golden("arch/mixtral"));
  const auto [parent, child] = get_module_from_name(loaded.model, "model.layers.0.mlp.experts");
  const auto experts =
      std::dynamic_pointer_cast<nn::Experts>(dynamic_cast<nn::Block&>(*parent).child(child));
  CHECK_THROWS_AS(
      experts->forward(at::randn({1, 64}), at::full({1, 1}, 4, at::kLong), at::ones({1, 1})),
      Error);
}

}  // namespace graft::tests
