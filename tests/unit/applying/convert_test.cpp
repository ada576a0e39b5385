// Conversion on meta, in memory and while loading.

#include <ATen/ATen.h>

#include <set>

#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

#include "model_folder.h"
#include "model_logits.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;
using test::logits;
namespace fs = std::filesystem;

namespace {

const std::string kDense = "vectors/tiny_llama_dense_fp16";
const std::string kNf4 = "vectors/tiny_llama_bnb_nf4_dq";

fs::path plugin(const std::string& name) {
  return fs::path(GRAFT_TEST_PLUGINS) / name / ("libgraft_test_" + name + ".so");
}

HostOptions with_rows() {
  HostOptions options;
  options.plugin_files = {plugin("good"), plugin("faulty")};
  return options;
}

Value rows() { return parse_json(R"({"quant_method":"rows8"})"); }

Value faulty(const std::string& fault, const std::string& where) {
  Value out;
  out.set("quant_method", "faulty8");
  out.set("fault", fault);
  out.set("where", where);
  return out;
}

std::shared_ptr<Model> skeleton(const Value& config) {
  return build_model(config, at::TensorOptions(at::kMeta).dtype(at::kHalf));
}

/// The dense golden model in memory.
std::shared_ptr<Model> dense(const Host& host) { return host.load(test::golden(kDense)).model; }

/// Every module's path, class and address.
std::vector<std::tuple<std::string, std::string, const void*>> shape_of(
    const std::shared_ptr<nn::Block>& root) {
  std::vector<std::tuple<std::string, std::string, const void*>> out;
  for (const auto& [path, module] : named_modules(root))
    out.emplace_back(path, class_name_of(*module), module.get());
  return out;
}

void check_equal_tensors(const std::shared_ptr<nn::Block>& a, const std::shared_ptr<nn::Block>& b) {
  const auto left = a->named_parameters(), right = b->named_parameters();
  REQUIRE(left.size() == right.size());
  for (const auto& item : left) {
    CAPTURE(item.key());
    CHECK(at::equal(item.value(), right[item.key()]));
  }
}

}  // namespace

TEST_CASE("preprocess_model on a quantized folder converts on meta what its tensors say") {
  const Host host;
  const auto checkpoint = Checkpoint::open(test::golden(kNf4));
  const auto model = skeleton(checkpoint.config());
  auto quantizer = ModelQuantizer::from_config(host, *quantization_config_of(checkpoint.config()),
                                               /*pre_quantized=*/true);
  CHECK(count(model, "Linear") == 15);
  const auto names = [&] {
    std::vector<std::string> out;
    for (const auto& module : named_modules(model)) out.push_back(module.path);
    return out;
  };
  const auto before = names();
  quantizer.preprocess_model(model, &checkpoint);
  CHECK(count(model, "Linear") == 15 - quantizer.plan().count(Action::quantize));
  CHECK(count(model, "Linear") == 1);
  CHECK(count(model, "Linear4bit") == 14);
  CHECK(names() == before);
  for (const auto& [path, module] : named_modules(model))
    for (const auto& parameter : module->named_parameters(/*recurse=*/false))
      CHECK_MESSAGE(parameter.value().is_meta(), path << "." << parameter.key());
  quantizer.load_weights(model, checkpoint);
  quantizer.postprocess_model(model);
  const c10::InferenceMode guard;
  CHECK(logits(model).isfinite().all().item<bool>());
}

TEST_CASE("a device by name is found, refused by name, or the best that the method serves") {
  const Host host(with_rows());
  const auto quantizer = ModelQuantizer::from_config(host, rows(), false);
  CHECK(quantizer.validate_environment("auto") == at::kCPU);  // the method has no other
  CHECK(quantizer.validate_environment("cpu") == at::kCPU);
  CHECK_THROWS_WITH_AS(quantizer.validate_environment("gpu"), doctest::Contains("auto, cpu, cuda"),
                       Error);
  CHECK_THROWS_WITH_AS(quantizer.validate_environment("mps"),
                       doctest::Contains("models cannot be loaded to this device"), Error);
  CHECK_THROWS_WITH_AS(quantizer.validate_environment(c10::Device(at::kCUDA)),
                       doctest::Contains("no plugin serves the method"), Error);
}

TEST_CASE("on the fly preprocess_model replaces nothing and postprocess_model does") {
  const Host host;
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const auto model = skeleton(checkpoint.config());
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method":"bitsandbytes","load_in_4bit":true})"));
  CHECK_FALSE(quantizer.pre_quantized());
  quantizer.preprocess_model(model, &checkpoint);
  CHECK(count(model, "Linear") == 15);
  quantizer.load_weights(model, checkpoint);
  CHECK(count(model, "Linear") == 15);
  quantizer.postprocess_model(model);
  CHECK(count(model, "Linear") == 1);
  CHECK(count(model, "Linear4bit") == 14);
  quantizer.dequantize(model);
  CHECK(count(model, "Linear") == 15);
}

TEST_CASE("a plugin that throws in the middle of a conversion on meta leaves the model as it was") {
  const Host host(with_rows());
  const std::string where = "model.layers.1.self_attn.o_proj";
  for (const std::string fault :
       {"model", "standard", "torch", "memory", "odd", "nothing", "interface"}) {
    CAPTURE(fault);
    const auto model = skeleton(test::config_of(kDense));
    const auto before = shape_of(model);
    auto quantizer = ModelQuantizer::from_config(host, faulty(fault, where), true);
    std::size_t observed = 0;
    quantizer.set_observer([&](auto&&...) { ++observed; });
    const auto error = test::thrown_by([&] { quantizer.preprocess_model(model); });
    CHECK(contains(error.what(), where));
    CHECK(contains(error.what(), "org.graft.test.faulty"));
    CHECK((shape_of(model) == before));
    CHECK(observed == 0);
    if (fault == "model") CHECK(error.kind() == ErrorKind::model);
    if (fault == "standard") CHECK(contains(error.what(), "it failed with 'the plugin tripped'"));
    if (fault == "torch") CHECK(contains(error.what(), "it failed with 'the tensor tripped'"));
    if (fault == "odd") CHECK(contains(error.what(), "an exception of unknown type"));
    if (fault == "nothing") CHECK(contains(error.what(), "made no module"));
    if (fault == "interface") CHECK(contains(error.what(), "expected RowLinear, found NotUnary"));
    if (fault == "memory") CHECK(contains(error.what(), "built the tensor 'scales' off meta"));
    // The same model converts with another plugin as if nothing had been.
    auto good = ModelQuantizer::from_config(host, rows(), true);
    good.preprocess_model(model);
    CHECK(count(model, "RowLinear") == 14);
  }
}

TEST_CASE("a failure while dense modules are converted names where, and the model still runs") {
  const Host host(with_rows());
  const auto model = dense(host);
  for (const std::string fault : {"standard", "nothing", "meta"}) {
    CAPTURE(fault);
    auto quantizer = ModelQuantizer::from_config(
        host, faulty(fault, "quantize model.layers.1.mlp.gate_proj"), false);
    const auto error = test::thrown_by([&] { quantizer.postprocess_model(model); });
    CHECK(error.kind() == ErrorKind::plugin);
    CHECK(contains(error.what(), "model.layers.1.mlp.gate_proj"));
  }
  CHECK(count(model, "RowLinear") == 11);
  CHECK(count(model, "Linear") == 4);
  const c10::InferenceMode guard;
  CHECK(logits(model).isfinite().all().item<bool>());
}

TEST_CASE("settings that a plugin does not make are an error that names it") {
  const Host host(with_rows());
  const auto error =
      test::thrown_by([&] { ModelQuantizer::from_config(host, faulty("nothing", "parse")); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "org.graft.test.faulty made no settings"));
}

TEST_CASE("what a callback of the caller throws inside a plugin is not blamed on the plugin") {
  const Host host(with_rows());
  Context context;
  context.progress = [](std::string_view stage, std::uint64_t, std::uint64_t) {
    if (stage == "rows") throw std::runtime_error("of the caller");
    return true;
  };
  for (const char* plugin_that : {"advance", "deaf"}) {
    const auto model = dense(host);
    auto quantizer = ModelQuantizer::from_config(
        host, faulty(plugin_that, "quantize model.layers.0.self_attn.q_proj"), false);
    CHECK_THROWS_WITH_AS(quantizer.postprocess_model(model, context), "of the caller",
                         std::runtime_error);
  }
}

TEST_CASE("a plugin that throws where it names its files is named") {
  const Host host(with_rows());
  ::setenv("GRAFT_TEST_SETTINGS_FILES", "throw", 1);
  const auto error = test::thrown_by([&] { host.load(test::golden(kDense)); });
  ::unsetenv("GRAFT_TEST_SETTINGS_FILES");
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(contains(error.what(), "org.graft.test.faulty"));
  CHECK(contains(error.what(), "no names today"));
}

TEST_CASE("a dense model converted in memory equals the streamed one byte for byte") {
  const Host host(with_rows());
  for (const char* json :
       {R"({"quant_method":"rows8"})", R"({"quant_method":"bitsandbytes","load_in_4bit":true})",
        R"({"quant_method":"bitsandbytes","load_in_8bit":true})"}) {
    CAPTURE(json);
    LoadOptions options;
    options.quantization_config = parse_json(json);
    const auto streamed = host.load(test::golden(kDense), options);
    const auto model = dense(host);
    auto quantizer = ModelQuantizer::from_config(host, options.quantization_config, false);
    quantizer.postprocess_model(model);
    check_equal_tensors(model, streamed.model);
    const test::TemporaryFolder out;
    host.save(streamed, out.path() / "streamed");
    LoadedModel in_memory{model, quantizer.plan(), streamed.checkpoint, quantizer.config(),
                          quantizer.describe()};
    host.save(in_memory, out.path() / "memory");
    for (const char* name : {"model.safetensors", "config.json"})
      CHECK(test::read_file(out.path() / "streamed" / name) ==
            test::read_file(out.path() / "memory" / name));
  }
}

TEST_CASE("weights are freed as they are converted") {
  const Host host(with_rows());
  const auto model = dense(host);
  std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> weights;
  for (const auto& item : model->named_parameters())
    if (item.key().find("proj.weight") != std::string::npos)
      weights.emplace_back(item.value().getIntrusivePtr());
  REQUIRE(weights.size() == 14);
  auto quantizer = ModelQuantizer::from_config(host, rows(), false);
  std::size_t freed = 0, told = 0;
  quantizer.set_observer([&](auto&&...) {
    // The one just converted may still be held by the swap that reports it.
    std::size_t now = 0;
    for (const auto& weight : weights) now += weight.expired();
    CHECK(now + 1 >= ++told);
    freed = now;
  });
  quantizer.postprocess_model(model);
  CHECK(told == 14);
  for (const auto& weight : weights) CHECK(weight.expired());
}

namespace {

struct Twins : nn::Block {
  explicit Twins(const std::shared_ptr<nn::Linear>& shared)
      : Block("Twins"), left(*this, "left", shared), right(*this, "right", shared) {}
  nn::Slot<nn::Unary> left, right;
};

std::shared_ptr<nn::Linear> linear(at::Device device) {
  auto out = std::make_shared<nn::Linear>(8, 4, false, at::TensorOptions(device));
  if (device.is_cpu()) out->set_tensor("weight", at::arange(32, at::kFloat).view({4, 8}));
  return out;
}

}  // namespace

TEST_CASE("a module that two paths lead to is converted once and swapped at both") {
  const Host host(with_rows());
  for (const auto device : {at::kMeta, at::kCPU}) {
    const auto twins = std::make_shared<Twins>(linear(device));
    auto quantizer = ModelQuantizer::from_config(host, rows(), device == at::kMeta);
    std::size_t told = 0;
    quantizer.set_observer([&](auto&&...) { ++told; });
    if (device == at::kMeta)
      quantizer.preprocess_model(twins);
    else
      quantizer.postprocess_model(twins);
    CHECK(told == 1);
    REQUIRE(quantizer.plan().entries.size() == 1);
    CHECK(quantizer.plan().entries[0].also == std::vector<std::string>{"right"});
    CHECK(twins->left->class_name() == "RowLinear");
    CHECK(twins->left.get() == twins->right.get());
    CHECK(twins->named_children()["right"].get() == twins->right.get().get());
  }
}

TEST_CASE("a root that matches is refused by name") {
  const Host host(with_rows());
  const auto root = linear(at::kMeta);
  auto quantizer = ModelQuantizer::from_config(host, rows(), true);
  const auto error = test::thrown_by([&] { quantizer.preprocess_model(root); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(),
                 "the root of the model, a Linear, cannot be replaced: nobody would hold "
                 "the replacement; put it into a graft::nn::Slot"));

  Host patched(with_rows());
  patched.add_replacement("Other", [](const ModuleSpec&, const Value&) {
    return std::make_shared<nn::Block>("Other");
  });
  patched.add_patch("{class: Twins, methods: '*', replacement: Other}");
  auto again = ModelQuantizer::from_config(patched, rows(), true);
  CHECK(contains(
      test::message_of([&] { again.preprocess_model(std::make_shared<Twins>(linear(at::kMeta))); }),
      "the root of the model, a Twins, cannot be replaced"));
}

TEST_CASE("a parent without a slot is refused with the line to change") {
  struct Plain : nn::Block {
    Plain() : Block("Plain") { register_module("fc", linear(at::kMeta)); }
  };
  const Host host(with_rows());
  auto quantizer = ModelQuantizer::from_config(host, rows(), true);
  const auto text =
      test::message_of([&] { quantizer.preprocess_model(std::make_shared<Plain>()); });
  CHECK(contains(text, "fc: the child 'fc' of a Plain cannot be replaced"));
  CHECK(contains(text, "graft::nn::Slot<graft::nn::Unary> fc{*this, \"fc\", ...};"));
}

TEST_CASE("a predicate leaves modules out, an observer sees the others") {
  const Host host(with_rows());
  const auto model = skeleton(test::config_of(kDense));
  auto quantizer = ModelQuantizer::from_config(host, rows(), true);
  quantizer.set_predicate(
      [](const ModuleSpec& spec) { return spec.path.find(".mlp.") != std::string::npos; });
  std::set<std::string> seen;
  quantizer.set_observer([&](const std::string& path, const std::string& before,
                             const std::string& after, const c10::Device& device) {
    CHECK(before == "Linear");
    CHECK(after == "RowLinear");
    CHECK(device.is_cpu());
    seen.insert(path);
  });
  quantizer.preprocess_model(model);
  CHECK(seen.size() == 6);
  CHECK(seen.contains("model.layers.1.mlp.down_proj"));
  CHECK(count(model, "RowLinear") == 6);
  for (const auto& entry : quantizer.plan().entries)
    if (entry.spec.path == "model.layers.0.self_attn.q_proj")
      CHECK(entry.reason == "left out by the caller");
}

TEST_CASE("steps in the wrong order are errors that say what comes first") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kNf4));
  const Value& settings = *quantization_config_of(checkpoint.config());
  const auto usage = [](auto call) {
    const auto error = test::thrown_by(call);
    CHECK(error.kind() == ErrorKind::usage);
    return std::string(error.what());
  };
  const auto model = skeleton(checkpoint.config());
  auto quantizer = ModelQuantizer::from_config(host, settings, true);
  CHECK(contains(
      usage([&] { quantizer.load_weights(model, checkpoint); }),
      "load_weights before preprocess_model: there is no plan yet; call preprocess_model"));
  CHECK(contains(usage([&] { quantizer.postprocess_model(model); }),
                 "postprocess_model before preprocess_model"));
  CHECK(contains(usage([&] { quantizer.dequantize(model); }), "the model is not converted"));
  quantizer.preprocess_model(model, &checkpoint);
  CHECK(contains(usage([&] { quantizer.preprocess_model(model, &checkpoint); }),
                 "preprocess_model: the model is converted already"));
  CHECK(contains(usage([&] { quantizer.set_pre_quantized(false); }), "converted already"));
  CHECK(contains(usage([&] { quantizer.convert_model_for_quantization(model); }),
                 "converted already"));
  CHECK(contains(usage([&] { quantizer.postprocess_model(model); }),
                 "postprocess_model before load_weights: the tensor has no values"));
  CHECK(contains(usage([&] { quantizer.dequantize(model); }), "dequantize before load_weights"));
  CHECK(contains(usage([&] { quantizer.load_weights(skeleton(checkpoint.config()), checkpoint); }),
                 "this is another model than the one that was planned"));
  quantizer.load_weights(model, checkpoint);
  quantizer.postprocess_model(model);

  auto on_the_fly = ModelQuantizer::from_config(host, rows(), false);
  const auto empty = skeleton(test::config_of(kDense));
  CHECK(contains(usage([&] { on_the_fly.postprocess_model(empty); }),
                 "postprocess_model before load_weights: the tensor has no values"));
  CHECK(count(empty, "Linear") == 15);
}

TEST_CASE("weights in memory are never lost to a conversion on meta") {
  const Host host(with_rows());
  const auto model = dense(host);
  const auto before = shape_of(model);
  auto quantizer = ModelQuantizer::from_config(host, rows(), true);
  const auto error = test::thrown_by([&] { quantizer.preprocess_model(model); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(), "is in memory and would be lost"));
  CHECK((shape_of(model) == before));
}

TEST_CASE("a skeleton of 70 billion parameters is converted on meta in little memory") {
  const Host host(with_rows());
  for (const char* json :
       {R"({"quant_method":"rows8"})", R"({"quant_method":"bitsandbytes","load_in_4bit":true})"}) {
    CAPTURE(json);
    const auto before = test::resident_bytes();
    const auto model =
        build_model(test::llama_70b(), at::TensorOptions(at::kMeta).dtype(at::kBFloat16));
    auto quantizer = ModelQuantizer::from_config(host, parse_json(json), true);
    quantizer.preprocess_model(model);
    const auto after = test::resident_bytes();
    CHECK(count(model, "Linear") == 1);
    CHECK(after - std::min(before, after) < 300'000'000);
    MESSAGE("memory grew by " << (after - std::min(before, after)) / 1000 << " kB");
  }
}

TEST_CASE("tied weights are one tensor after loading, and on whatever device the model goes to") {
  const Host host(with_rows());
  const test::ModelFolder folder(kDense, {{"tie_word_embeddings", true}});
  LoadOptions options;
  options.quantization_config = rows();
  const auto loaded = host.load(folder.path(), options);
  const auto parameters = loaded.model->named_parameters();
  CHECK(parameters["lm_head.weight"].is_same(parameters["model.embed_tokens.weight"]));
  const test::TemporaryFolder out;
  host.save(loaded, out.path() / "m");
  CHECK(Checkpoint::open(out.path() / "m").find("lm_head.weight") == nullptr);
  const auto again = host.load(out.path() / "m");
  check_equal_tensors(again.model, loaded.model);
  again.model->to(at::kMeta);  // as good a device as any
  const auto moved = again.model->named_parameters();
  CHECK(moved["lm_head.weight"].is_meta());
  CHECK(moved["lm_head.weight"].is_same(moved["model.embed_tokens.weight"]));
}
