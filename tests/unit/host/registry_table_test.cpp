// The rows of the registry that the page on module conversion shows, from a plugin and its own
// registry.yaml, on a model that graft does not have.

#include <ATen/ATen.h>

#include "custom_model.h"
#include "graft/host.h"
#include "graft/module_graph.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;
namespace fs = std::filesystem;

namespace {

HostOptions with(std::initializer_list<const char*> plugins) {
  HostOptions options;
  for (const char* name : plugins)
    options.plugin_directories.push_back(fs::path(GRAFT_TEST_PLUGINS) / name);
  return options;
}

/// A skeleton converted under `settings`, with its plan.
struct Converted {
  std::shared_ptr<my::CustomModel> model;
  Plan plan;

  explicit Converted(const std::string& settings) {
    const Host host(with({"special"}));
    model = std::make_shared<my::CustomModel>(
        parse_json(R"({"model_type": "custom", "num_experts": 3, "hidden_size": 64})"),
        at::TensorOptions(at::kMeta));
    auto quantizer = ModelQuantizer::from_config(host, parse_json(settings), true);
    quantizer.preprocess_model(model);
    plan = quantizer.plan();
  }

  std::size_t number_of(const char* module_class) const { return count(model, module_class); }

  const PlanEntry& at(const std::string& path) const {
    for (const auto& entry : plan.entries)
      if (entry.spec.path == path) return entry;
    throw Error(ErrorKind::internal, "no entry").at(path);
  }
};

const std::string kGptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})";
const std::string kAwq = R"({"quant_method": "awq", "bits": 4, "group_size": 32})";
const std::string kBnb = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";

}  // namespace

TEST_CASE("CustomExpertModule becomes SequentialCustomExperts under bitsandbytes and gptq") {
  for (const auto& [settings, expert] :
       {std::pair(kBnb, "Linear4bit"), std::pair(kGptq, "QuantLinear")}) {
    CAPTURE(settings);
    const Converted converted(settings);
    CHECK(converted.number_of("CustomExpertModule") == 0);
    CHECK(converted.number_of("SequentialCustomExperts") == 1);
    CHECK(converted.number_of(expert) == 3);
    CHECK(converted.at("experts").action == Action::restructure);
    CHECK(contains(converted.at("experts").reason, "libgraft_special.yaml:4"));
  }
}

TEST_CASE("CustomExpertModule stays as it is under awq, and is listed as kept") {
  const Converted converted(kAwq);
  CHECK(converted.number_of("CustomExpertModule") == 1);
  CHECK(converted.number_of("SequentialCustomExperts") == 0);
  CHECK(converted.at("experts").action == Action::keep);
  CHECK(converted.at("experts").reason ==
        "no plugin claims the class CustomExpertModule for awq on cpu");
}

TEST_CASE("SpecialLinear becomes QuantizedSpecialLinear under gptq and awq") {
  for (const auto& settings : {kGptq, kAwq}) {
    CAPTURE(settings);
    const Converted converted(settings);
    CHECK(converted.number_of("SpecialLinear") == 0);
    CHECK(converted.number_of("QuantizedSpecialLinear") == 1);
    CHECK(converted.at("special").plugin == "org.example.special");
    CHECK(contains(converted.at("special").reason, "libgraft_special.yaml:8"));
  }
}

TEST_CASE("SpecialLinear stays as it is under bitsandbytes, and is listed as kept") {
  const Converted converted(kBnb);
  CHECK(converted.number_of("SpecialLinear") == 1);
  CHECK(converted.number_of("QuantizedSpecialLinear") == 0);
  CHECK(converted.at("special").action == Action::keep);
  CHECK(converted.at("special").reason ==
        "no plugin claims the class SpecialLinear for bitsandbytes on cpu");
}

TEST_CASE("a quantized class of a plugin's own gives the numbers of the class that it replaces") {
  const c10::InferenceMode guard;
  at::manual_seed(1);
  const Host host(with({"special"}));
  const auto model = my::CustomModel::random();
  const auto x = at::randn({5, 64});
  const auto before = model->special->forward(x);
  auto quantizer = ModelQuantizer::from_config(host, parse_json(kGptq), false);
  quantizer.set_predicate([](const ModuleSpec& spec) { return spec.path == "special"; });
  quantizer.postprocess_model(model);
  CHECK(model->special->class_name() == "QuantizedSpecialLinear");
  const double largest = before.abs().max().item<double>();
  CHECK((model->special->forward(x) - before).abs().max().item<double>() < 0.02 * largest);
}

TEST_CASE("two plugins with one claim: the error names both files") {
  const Host host(with({"good", "twin"}));
  const auto checkpoint = Checkpoint::open(test::golden("vectors/tiny_llama_dense_fp16"));
  LoadOptions options;
  options.quantization_config = parse_json(R"({"quant_method": "rows8"})");
  const auto error = test::thrown_by([&] { host.plan(checkpoint, options); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "good/libgraft_test_good.so"));
  CHECK(contains(error.what(), "twin/libgraft_test_twin.so"));
  CHECK(contains(error.what(), "decide with a registry line such as {class: Linear"));
}

TEST_CASE("two plugins with one claim: a pin decides") {
  Host host(with({"good", "twin"}));
  host.add_patch("{class: Linear, methods: [rows8], plugin: org.graft.test.twin}");
  LoadOptions options;
  options.quantization_config = parse_json(R"({"quant_method": "rows8"})");
  const Plan plan =
      host.plan(Checkpoint::open(test::golden("vectors/tiny_llama_dense_fp16")), options);
  CHECK(plan.count(Action::quantize) == 14);
  for (const auto& entry : plan.entries)
    if (entry.action == Action::quantize) CHECK(entry.plugin == "org.graft.test.twin");
  CHECK(plan.plugin == "org.graft.test.twin");
  // Its settings go into the folder, so that it is read again.
  const test::TemporaryFolder out;
  host.save(host.load(test::golden("vectors/tiny_llama_dense_fp16"), options), out.path() / "m");
  CHECK(host.load(out.path() / "m").plan.count(Action::quantize) == 14);
}

TEST_CASE("two plugins that build one replacement: the error names both files") {
  const Host host(with({"special", "twin"}));
  const auto error = test::thrown_by([&] { host.builds("SequentialCustomExperts"); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "special/libgraft_special.so"));
  CHECK(contains(error.what(), "twin/libgraft_test_twin.so"));
}
