#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "folder.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

// The two examples of the page that describes module conversion: experts of the user's own that are
// made separate under some methods, and a linear class that only some methods take.
namespace graft::tests {
namespace {

constexpr std::int64_t kExperts = 3, kWidth = 64;

/// All experts on one input: [B, width] -> [experts, B, width].
struct CustomExperts : nn::Unary {
  using Unary::Unary;
};

struct CustomExpertModule : CustomExperts {
  CustomExpertModule() : CustomExperts("CustomExpertModule") {
    own("weights", weights, at::randn({kExperts, kWidth, kWidth}));
  }
  at::Tensor forward(const at::Tensor& x) override {
    return at::matmul(x, weights.transpose(1, 2));
  }
  void describe(ModuleSpec& spec) const override {
    CustomExperts::describe(spec);
    spec.dtype = weights.scalar_type();
  }
  at::Tensor weights;
};

struct SequentialCustomExperts : CustomExperts {
  SequentialCustomExperts(std::int64_t count, const at::TensorOptions& o)
      : CustomExperts("SequentialCustomExperts"), experts(*this, "experts") {
    for (std::int64_t i = 0; i < count; ++i)
      experts.append(std::make_shared<nn::Linear>(kWidth, kWidth, false, o));
  }
  at::Tensor forward(const at::Tensor& x) override {
    std::vector<at::Tensor> out;
    for (std::size_t i = 0; i < experts.size(); ++i) out.push_back(experts[i].forward(x));
    return at::stack(out);
  }
  nn::SlotList<nn::Unary> experts;
};

struct CustomModel : Model {
  CustomModel()
      : Model("CustomModel",
              parse_json(R"({"text_config": {"num_experts": 3}, "model_type": "custom"})")),
        block(*this, "block", std::make_shared<CustomExpertModule>()),
        special(*this, "special", special_linear()) {}

  static std::shared_ptr<nn::Unary> special_linear() {
    auto linear = std::make_shared<nn::Linear>("SpecialLinear", kWidth, kWidth, false,
                                               at::TensorOptions(at::kFloat));
    linear->set_tensor("weight", at::randn({kWidth, kWidth}));
    return linear;
  }

  Output output() const override { return Output::logits; }
  at::Tensor forward(const Batch& batch) override { return block->forward(batch.input_ids); }
  std::size_t cache_layers() const override { return 0; }
  std::vector<InputGroup> input_groups() const override { return {}; }

  nn::Slot<CustomExperts> block;
  nn::Slot<nn::Unary> special;
};

Restructuring separate() {
  Restructuring how;
  how.build = [](const ModuleSpec& spec, const Value& text) {
    return std::make_shared<SequentialCustomExperts>(
        text.at("num_experts").as_int(), at::TensorOptions(at::kMeta).dtype(spec.dtype));
  };
  how.map = [](const ModuleSpec&, const Value& text) {
    std::vector<nn::TensorPart> parts;
    for (std::int64_t e = 0; e < text.at("num_experts").as_int(); ++e)
      parts.push_back({"weights", "experts." + std::to_string(e) + ".weight", {.index = e}});
    return parts;
  };
  return how;
}

ModelQuantizer eight_bit(const Host& host) {
  return ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
                           "graft_int8_forward": "dequant"})"),
      false);
}

const PlanEntry& entry_at(const Plan& plan, const std::string& path) {
  for (const auto& entry : plan.entries)
    if (entry.spec.path == path) return entry;
  throw Error(ErrorKind::internal, "no entry").at(path);
}

}  // namespace

TEST_CASE("experts of the user's own become separate and are quantized") {
  const c10::InferenceMode guard;
  Host host;
  host.add_replacement("SequentialCustomExperts", separate());
  host.add_patch(
      "{class: CustomExpertModule, methods: [bitsandbytes, gptq], "
      "replacement: SequentialCustomExperts}");
  const auto model = std::make_shared<CustomModel>();
  const auto x = at::randn({5, kWidth});
  const auto before = model->block->forward(x);
  auto quantizer = eight_bit(host);
  const Plan& plan = quantizer.make_plan(model);
  CHECK(entry_at(plan, "block").action == Action::restructure);
  CHECK(entry_at(plan, "block").reason == "API:1");
  CHECK(distance(model->block->forward(x), before) <= 1e-5);
  quantizer.postprocess_model(model, Context{});
  CHECK(count(model, "Linear8bitLt") == kExperts);
  CHECK(distance(model->block->forward(x), before) <= 0.05 * before.abs().max().item<double>());
}

TEST_CASE("a class that a rule does not name for the method stays, and is listed as kept") {
  const c10::InferenceMode guard;
  Host host;
  host.add_replacement("SequentialCustomExperts", separate());
  host.add_patch(
      "{class: CustomExpertModule, methods: [gptq], replacement: SequentialCustomExperts}");
  host.add_patch("{class: SpecialLinear, methods: [gptq, awq], replacement: QuantizedSpecial}");
  const auto model = std::make_shared<CustomModel>();
  auto quantizer = eight_bit(host);
  const Plan& plan = quantizer.make_plan(model);
  CHECK(entry_at(plan, "block").action == Action::keep);
  CHECK(entry_at(plan, "special").action == Action::keep);
  CHECK(entry_at(plan, "special").reason.find("SpecialLinear") != std::string::npos);
  CHECK(count(model, "CustomExpertModule") == 1);
  CHECK(count(model, "SpecialLinear") == 1);
}

TEST_CASE("a replacement that nobody builds, or whose map does not fit, is refused") {
  const c10::InferenceMode guard;
  const auto plan_with = [](const char* name, const Restructuring* how) {
    Host host;
    if (how) host.add_replacement(name, *how);
    host.add_patch(std::string("{class: CustomExpertModule, methods: [bitsandbytes], ") +
                   "replacement: " + name + "}");
    auto quantizer = eight_bit(host);
    quantizer.make_plan(std::make_shared<CustomModel>());
  };
  CHECK_THROWS_WITH_AS(plan_with("Nobody", nullptr), doctest::Contains("nobody builds"), Error);
  auto how = separate();
  how.map = nullptr;
  CHECK_THROWS_WITH_AS(plan_with("Unmapped", &how), doctest::Contains("leaves out"), Error);
  how.map = [](const ModuleSpec&, const Value&) {
    return std::vector<nn::TensorPart>{{"weights", "experts.0.weight", {.index = 7}}};
  };
  CHECK_THROWS_WITH_AS(plan_with("Outside", &how), doctest::Contains("lacks"), Error);
  how.map = [](const ModuleSpec&, const Value&) {
    return std::vector<nn::TensorPart>{{"weights", "experts.9.weight", {.index = 0}}};
  };
  CHECK_THROWS_AS(plan_with("Elsewhere", &how), Error);
}

}  // namespace graft::tests
