#include "graft/host.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include "graft/module_graph.h"
#include "graft/nn/layers.h"

#include "model_folder.h"
#include "model_logits.h"
#include "thrown_by.h"

using namespace graft;
using test::logits;
using test::contains;
namespace fs = std::filesystem;

namespace {

const std::string kDense = "vectors/tiny_llama_dense_fp16";

LoadOptions with(const std::string& json) {
  LoadOptions options;
  options.quantization_config = parse_json(json);
  return options;
}

}  // namespace

TEST_CASE(
    "a plugin that is dropped into a folder is found, planned with, quantizes and loads back") {
  const test::TemporaryFolder folder;
  fs::create_directory_symlink(fs::path(GRAFT_TEST_PLUGINS) / "good", folder.path() / "plugins");
  HostOptions options;
  options.plugin_directories = {folder.path() / "plugins"};
  const Host host(options);
  const auto loaded = host.load(test::golden(kDense), with(R"({"quant_method":"rows8"})"));
  CHECK(count(loaded.model, "RowLinear") == 14);
  host.save(loaded, folder.path() / "out");
  const auto again = host.load(folder.path() / "out");
  CHECK(again.plan.pre_quantized);
  CHECK(again.plan.method == "rows8");
  CHECK(count(again.model, "RowLinear") == 14);
  CHECK(at::equal(logits(again.model), logits(loaded.model)));
  const auto dense = logits(host.load(test::golden(kDense)).model);
  CHECK((logits(again.model) - dense).abs().max().item<float>() < 0.1F);
}

TEST_CASE("rules of the user's config directory win over installed ones") {
  const test::TemporaryFolder folder;
  folder.write("graft/registry/mine.yaml",
               "graft: 1\npatches:\n"
               "  - {class: '*', methods: '*', match: '*.up_proj', keep: mine}\n");
  const char* former = std::getenv("XDG_CONFIG_HOME");
  const std::string saved = former ? former : "";
  setenv("XDG_CONFIG_HOME", folder.path().c_str(), 1);
  const Host host;
  former ? setenv("XDG_CONFIG_HOME", saved.c_str(), 1) : unsetenv("XDG_CONFIG_HOME");
  const Plan plan = host.plan(Checkpoint::open(test::golden(kDense)),
                              with(R"({"quant_method":"bitsandbytes","load_in_8bit":true})"));
  std::size_t mine = 0;
  for (const auto& entry : plan.entries) mine += entry.reason.find("mine.yaml:3") != std::string::npos;
  CHECK(mine == 2);
  CHECK(plan.count(Action::quantize) == 12);
}

TEST_CASE("a model outlives the host that made it") {
  std::shared_ptr<Model> model;
  at::Tensor expected;
  {
    HostOptions options;
    options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good"};
    const Host host(options);
    model = host.load(test::golden(kDense), with(R"({"quant_method":"rows8"})")).model;
    expected = logits(model);
  }
  CHECK(at::equal(logits(model), expected));
}

TEST_CASE("a device that models cannot be loaded to is refused by name") {
  const Host host;
  const auto refusal_of = [&](const std::string& device) {
    LoadOptions options;
    options.device = c10::Device(device);
    return std::string(
        test::thrown_by([&] { (void)host.load(test::golden(kDense), options); }).what());
  };
  CHECK(contains(refusal_of("mps"), "expected cpu, cuda or cuda:N, found 'mps'"));
  if (!at::hasCUDA())
    CHECK(contains(refusal_of("cuda"), "there is no CUDA device that LibTorch can use"));
  else
    CHECK(contains(refusal_of("cuda:99"), "there is no such CUDA device"));
}

TEST_CASE("two hosts side by side keep their rules and plugins to themselves") {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good"};
  Host one(options);
  const Host two(options);
  HostOptions bare;
  bare.default_plugin_path = false;
  const Host none(bare);
  one.add_patch("{class: Linear, methods: '*', match: '*.up_proj', keep: mine}");
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  CHECK(one.plan(checkpoint, with(R"({"quant_method":"rows8"})")).count(Action::quantize) == 12);
  CHECK(two.plan(checkpoint, with(R"({"quant_method":"rows8"})")).count(Action::quantize) == 14);
  CHECK(contains(
      test::message_of([&] { none.plan(checkpoint, with(R"({"quant_method":"rows8"})")); }),
      "expected a plugin, but none is loaded"));
}

TEST_CASE("rules given through the API count in the order they were given, and say so") {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good"};
  Host host(options);
  host.add_patch("{class: Linear, methods: '*', match: '*.up_*', keep: first}");
  host.add_patch("{class: Linear, methods: '*', match: '*.up_proj', keep: second}");
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const Plan plan = host.plan(checkpoint, with(R"({"quant_method":"rows8"})"));
  for (const auto& entry : plan.entries)
    if (entry.spec.path == "model.layers.0.mlp.up_proj") CHECK(entry.reason == "second (API:2)");
  const auto text = test::message_of([&] { host.add_patch("{class: Linear, mehtods: x"); });
  CHECK(contains(text, "API:"));
  CHECK(host.plan(checkpoint, with(R"({"quant_method":"rows8"})")).count(Action::quantize) == 12);
}

namespace {

/// Keeps the values and changes the graph: a leaf that cannot be quantized becomes one with parts.
struct Stack : nn::Unary {
  explicit Stack(const ModuleSpec& spec)
      : Unary("Stack"),
        inner(*this, "inner",
              std::make_shared<nn::Linear>(spec.in_features, spec.out_features, spec.bias,
                                           at::TensorOptions(at::kMeta))) {}
  at::Tensor forward(const at::Tensor& x) override { return inner->forward(x); }
  nn::Slot<nn::Unary> inner;
};

struct Home : nn::Block {
  explicit Home(at::Device device) : Block("Home"), odd(*this, "odd", make(device)) {}
  static std::shared_ptr<nn::Unary> make(at::Device device) {
    return std::make_shared<nn::LayerNorm>(8, 1e-5, at::TensorOptions(device));
  }
  nn::Slot<nn::Unary> odd;
};

Host host_with_stack() {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good",
                                fs::path(GRAFT_TEST_PLUGINS) / "faulty"};
  Host host(options);
  host.add_replacement("Stack", [](const ModuleSpec& spec, const Value&) {
    ModuleSpec inner = spec;
    inner.in_features = inner.out_features = 8;
    return std::make_shared<Stack>(inner);
  });
  host.add_patch("{class: LayerNorm, methods: '*', replacement: Stack}");
  return host;
}

}  // namespace

TEST_CASE("a restructuring is carried out on the skeleton and its parts are quantized") {
  const Host host = host_with_stack();
  const auto home = std::make_shared<Home>(at::kMeta);
  auto quantizer =
      ModelQuantizer::from_config(host, parse_json(R"({"quant_method":"rows8"})"), true);
  quantizer.preprocess_model(home);
  CHECK(home->odd->class_name() == "Stack");
  CHECK(count(home, "RowLinear") == 1);
  CHECK(quantizer.plan().count(Action::restructure) == 1);
  CHECK(quantizer.plan().entries[0].reason == "API:1");
}

TEST_CASE("when planning fails what was restructured is put back") {
  const Host host = host_with_stack();
  const auto home = std::make_shared<Home>(at::kMeta);
  const auto before = home->odd.get();
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method":"faulty8","fault":"standard","where":"supports"})"),
      true);
  CHECK(contains(test::message_of([&] { quantizer.preprocess_model(home); }), "odd.inner"));
  CHECK(home->odd.get() == before);
}

TEST_CASE("a replacement whose map leaves out a weight in memory is refused") {
  const Host host = host_with_stack();
  const auto home = std::make_shared<Home>(at::kCPU);
  const auto before = home->odd.get();
  auto quantizer =
      ModelQuantizer::from_config(host, parse_json(R"({"quant_method":"rows8"})"), false);
  CHECK(contains(test::message_of([&] { quantizer.postprocess_model(home); }),
                 "odd: inner.weight: the map of a replacement leaves out a tensor"));
  CHECK(home->odd.get() == before);
}

TEST_CASE("a replacement that nobody builds is an error when it is needed") {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good"};
  Host host(options);
  host.add_patch("{class: LayerNorm, methods: rows8, replacement: Nobody}");
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  host.plan(checkpoint, with(R"({"quant_method":"rows8"})"));  // a Llama has no LayerNorm
  auto quantizer =
      ModelQuantizer::from_config(host, parse_json(R"({"quant_method":"rows8"})"), true);
  const auto error =
      test::thrown_by([&] { quantizer.preprocess_model(std::make_shared<Home>(at::kMeta)); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(),
                 "API:1: nobody builds the replacement 'Nobody' for the LayerNorm at "
                 "'odd'; install the plugin that builds it, or register it with "
                 "Host::add_replacement"));
}

TEST_CASE("a replacement that a plugin announces for a class it claims is built by the plugin") {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "good"};
  Host host(options);
  host.add_patch("{class: Linear, methods: rows8, replacement: RowLinear}");
  const Plan plan =
      host.plan(Checkpoint::open(test::golden(kDense)), with(R"({"quant_method":"rows8"})"));
  CHECK(plan.count(Action::quantize) == 14);
  CHECK(plan.count(Action::restructure) == 0);
}

TEST_CASE("progress can stop a load, and the host goes on") {
  const Host host;
  LoadOptions options;
  std::size_t steps = 0;
  options.context.progress = [&](std::string_view, std::uint64_t, std::uint64_t) {
    return ++steps < 5;
  };
  const auto error = test::thrown_by([&] { host.load(test::golden(kDense), options); });
  CHECK(error.kind() == ErrorKind::interrupted);
  CHECK(steps == 5);
  host.load(test::golden(kDense));
}
