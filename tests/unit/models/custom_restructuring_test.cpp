#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "custom_model.h"
#include "folder.h"
#include "graft/host.h"
#include "graft/module_graph.h"
#include "special/sequential_custom_experts.h"

// Experts of the user's own that are made separate under some methods; the rows of the registry
// from a plugin are in host/registry_table_test.cpp.
namespace graft::tests {
namespace {

using org::example::special::separate_custom_experts;

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
  host.add_replacement("SequentialCustomExperts", separate_custom_experts());
  host.add_patch(
      "{class: CustomExpertModule, methods: [bitsandbytes, gptq], "
      "replacement: SequentialCustomExperts}");
  const auto model = my::CustomModel::random();
  const auto x = at::randn({5, 64});
  const auto before = model->experts->forward(x);
  auto quantizer = eight_bit(host);
  const Plan& plan = quantizer.make_plan(model);
  CHECK(entry_at(plan, "experts").action == Action::restructure);
  CHECK(entry_at(plan, "experts").reason == "API:1");
  CHECK(distance(model->experts->forward(x), before) <= 1e-5);
  quantizer.postprocess_model(model, Context{});
  CHECK(count(model, "Linear8bitLt") == 3);
  CHECK(distance(model->experts->forward(x), before) <= 0.05 * before.abs().max().item<double>());
}

TEST_CASE("a replacement that nobody builds, or whose map does not fit, is refused") {
  const c10::InferenceMode guard;
  const auto plan_with = [](const char* name, const Restructuring* how) {
    Host host;
    if (how) host.add_replacement(name, *how);
    std::string patch = "{class: CustomExpertModule, methods: [bitsandbytes], replacement: ";
    patch += name;
    host.add_patch(patch + "}");
    auto quantizer = eight_bit(host);
    quantizer.make_plan(my::CustomModel::random());
  };
  CHECK_THROWS_WITH_AS(plan_with("Nobody", nullptr), doctest::Contains("nobody builds"), Error);
  auto how = separate_custom_experts();
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
