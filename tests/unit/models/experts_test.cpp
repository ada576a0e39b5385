#include "graft/nn/experts.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <array>
#include <span>

#include "folder.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/unary.h"

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

/// A projection that can run with others of its kind, and counts how it is asked.
struct Projection : nn::Unary {
  struct Calls {
    int alone = 0, together = 0;
  };
  Projection(const nn::Unary& dense, Calls& calls, bool goes_together)
      : Unary("Projection"), calls_(calls), goes_together_(goes_together) {
    own("weight", weight_, dense.own_tensors().front().second);
  }

  at::Tensor product(const at::Tensor& x) const { return at::mm(x, weight_.t()); }
  at::Tensor forward(const at::Tensor& x) override {
    ++calls_.alone;
    return product(x);
  }
  at::Tensor forward_segments(const at::Tensor& x, std::span<const Segment> segments) override {
    if (!goes_together_) return {};
    ++calls_.together;
    std::vector<at::Tensor> out;
    std::int64_t first = 0;
    for (const auto& [module, rows] : segments) {
      CHECK(rows > 0);
      out.push_back(dynamic_cast<Projection&>(*module).product(x.narrow(0, first, rows)));
      first += rows;
    }
    CHECK(first == x.size(0));
    return at::cat(out);
  }

 private:
  Calls& calls_;
  bool goes_together_;
  at::Tensor weight_;
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

TEST_CASE("experts whose projections can run together do so, others one by one, to one result") {
  const c10::InferenceMode guard;
  const Host host;
  const auto loaded = host.load(golden("arch/qwen3_moe"));
  auto quantizer = ModelQuantizer::from_config(host, with_method(nf4()), false);
  quantizer.set_predicate([&](const ModuleSpec& spec) { return spec.class_name != "Linear"; });
  quantizer.make_plan(loaded.model);
  std::shared_ptr<nn::Experts> experts;
  for (const auto& [path, module] : named_modules(loaded.model))
    if (class_name_of(*module) == "SequentialQwen3MoeExperts")
      experts = std::dynamic_pointer_cast<nn::Experts>(module);
  REQUIRE(experts);
  at::manual_seed(1);
  const auto x = at::randn({7, 64});
  const auto weights = at::rand({7, 2});
  const auto ids = at::randint(experts->size(), {7, 2}, at::kLong);
  const int chosen = static_cast<int>(std::get<0>(at::_unique(ids)).numel());
  const auto before = experts->forward(x, ids, weights);

  Projection::Calls calls[3];
  const auto replace = [&](const std::array<bool, 3>& together) {
    for (auto& counted : calls) counted = {};
    for (std::int64_t e = 0; e < experts->size(); ++e) {
      auto& expert = dynamic_cast<nn::Block&>(*experts->child(std::to_string(e)));
      for (std::size_t i = 0; i < 3; ++i) {
        const std::string name = std::array{"gate_proj", "up_proj", "down_proj"}[i];
        expert.replace_child(
            name, std::make_shared<Projection>(dynamic_cast<nn::Unary&>(*expert.child(name)),
                                               calls[i], together[i]));
      }
    }
  };
  const auto check = [&](const std::array<bool, 3>& runs_together) {
    CHECK(distance(experts->forward(x, ids, weights), before) <= 1e-6);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(calls[i].together == (runs_together[i] ? 1 : 0));
      CHECK(calls[i].alone == (runs_together[i] ? 0 : chosen));
    }
  };
  replace({true, true, true});
  check({true, true, true});
  replace({false, false, false});
  check({false, false, false});
  replace({true, true, false});
  check({true, true, false});
  replace({true, false, true});
  check({true, false, true});
  // The gate decides: without it an expert stays in one piece.
  replace({false, true, true});
  check({false, false, false});
  const auto nothing = experts->forward(x.narrow(0, 0, 0), ids.narrow(0, 0, 0),
                                        weights.narrow(0, 0, 0));
  CHECK(nothing.size(0) == 0);
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
