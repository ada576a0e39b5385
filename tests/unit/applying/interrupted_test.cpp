// A conversion step by step that is stopped, fails, or meets a model that another one converted.

#include <ATen/ATen.h>

#include <stdexcept>

#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

#include "model_folder.h"
#include "model_logits.h"
#include "temporary_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;
using test::logits;
namespace fs = std::filesystem;

namespace {

const std::string kDense = "vectors/tiny_llama_dense_fp16";
const char* const kNf4 = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";
const char* const kInt8 = R"({"quant_method": "bitsandbytes", "load_in_8bit": true})";

std::shared_ptr<Model> dense(const Host& host) { return host.load(test::golden(kDense)).model; }

Value named(const char* module_class) {
  Value config;
  config.set("model_type", module_class);
  return config;
}

}  // namespace

TEST_CASE("a conversion in memory that was interrupted goes on where it stopped") {
  const Host host;
  for (const char* settings : {kNf4, kInt8}) {
    CAPTURE(settings);
    const auto model = dense(host), whole = dense(host);
    auto quantizer = ModelQuantizer::from_config(host, parse_json(settings));
    Context stops;
    stops.progress = [](std::string_view, std::uint64_t done, std::uint64_t) { return done < 5; };
    const auto error = test::thrown_by([&] { quantizer.postprocess_model(model, stops); });
    CHECK(error.kind() == ErrorKind::interrupted);
    CHECK(count(model, "Linear") == 10);
    const auto calibrating = test::message_of([&] { quantizer.calibrate(model, {}); });
    CHECK(contains(calibrating, "model.layers.0.self_attn.q_proj: calibrate: a module is"));
    quantizer.postprocess_model(model);
    CHECK(count(model, "Linear") == 1);
    ModelQuantizer::from_config(host, parse_json(settings)).postprocess_model(whole);
    CHECK(at::equal(logits(model), logits(whole)));
  }
}

TEST_CASE("a module whose observer throws stays dense, and the conversion can go on") {
  const Host host;
  const auto model = dense(host);
  auto quantizer = ModelQuantizer::from_config(host, parse_json(kNf4));
  quantizer.set_observer([](const auto& path, const auto&, const auto&, const auto&) {
    if (path == "model.layers.1.self_attn.q_proj") throw std::runtime_error("of the caller");
  });
  CHECK_THROWS_WITH_AS(quantizer.postprocess_model(model), "of the caller", std::runtime_error);
  CHECK(count(model, "Linear") == 8);
  quantizer.set_observer({});
  quantizer.postprocess_model(model);
  CHECK(count(model, "Linear") == 1);
}

TEST_CASE("when an observer throws after a calibration, the model is dense as before") {
  const Host host;
  const auto model = dense(host);
  auto quantizer = ModelQuantizer::from_config(
      host, parse_json(R"({"quant_method": "gptq", "bits": 4, "group_size": 32})"), false);
  quantizer.set_observer([](const auto&...) { throw std::runtime_error("of the caller"); });
  const std::vector<std::function<void()>> batches{[&] { logits(model); }};
  CHECK_THROWS_WITH_AS(quantizer.calibrate(model, batches), "of the caller", std::runtime_error);
  CHECK(count(model, "Linear") == 15);
  quantizer.set_observer({});
  quantizer.calibrate(model, batches);
  CHECK(count(model, "Linear") == 1);
}

TEST_CASE("what another ModelQuantizer converted is not saved as if it were dense") {
  const Host host;
  const test::TemporaryFolder out;
  const auto model = dense(host);
  auto first = ModelQuantizer::from_config(host, parse_json(kNf4));
  first.set_predicate([](const ModuleSpec& spec) { return spec.path.ends_with("up_proj"); });
  first.postprocess_model(model);
  auto second = ModelQuantizer::from_config(host, parse_json(kInt8));
  second.postprocess_model(model);
  const auto error = test::thrown_by(
      [&] { second.save(model, out.path() / "m", {}, named("llama")); });
  CHECK(contains(error.what(), "mlp.up_proj: the module was quantized by another ModelQuantizer"));
  CHECK_FALSE(fs::exists(out.path() / "m"));
}

TEST_CASE("numbers that quantized layers do not compute with are refused before anything is made") {
  const Host host;
  for (const auto dtype : {at::kDouble, at::kInt}) {
    LoadOptions options;
    options.dtype = dtype;
    options.quantization_config = parse_json(kNf4);
    CHECK_THROWS_WITH_AS(host.load(test::golden(kDense), options),
                         doctest::Contains("expected float32, bfloat16 or float16"), Error);
  }
  struct Net : nn::Block {
    Net()
        : Block("Net"),
          linear(*this, "linear",
                 std::make_shared<nn::Linear>(64, 64, false,
                                              at::TensorOptions(at::kCPU).dtype(at::kDouble))) {}
    nn::Slot<nn::Unary> linear;
  };
  const auto net = std::make_shared<Net>();
  auto quantizer = ModelQuantizer::from_config(host, parse_json(kNf4));
  CHECK_THROWS_WITH_AS(quantizer.postprocess_model(net), doctest::Contains("found 'float64'"),
                       Error);
}

TEST_CASE("a model that says float64 is float32 here, which is told") {
  const Host host;
  const test::ModelFolder folder(kDense, {{"dtype", "float64"}, {"torch_dtype", "float64"}});
  LoadOptions options;
  options.quantization_config = parse_json(kNf4);
  const auto loaded = host.load(folder.path(), options);
  CHECK((loaded.plan.dtype == at::kFloat));
  CHECK(contains(loaded.plan.notes.back(), "the model's dtype is float64"));
  CHECK(logits(loaded.model).isfinite().all().item<bool>());
}

TEST_CASE("a model that was dequantized is quantized again as it was, where layers keep [K, N] too") {
  const Host host;
  const auto model = host.load(test::golden("arch/gpt2")).model;
  auto quantizer = ModelQuantizer::from_config(host, parse_json(kNf4));
  quantizer.postprocess_model(model);
  const auto once = logits(model);
  quantizer.dequantize(model);
  quantizer.postprocess_model(model);
  CHECK(count(model, "Linear4bit") == 8);
  const double largest = once.abs().max().item<double>();
  CHECK((logits(model) - once).abs().max().item<double>() <= 1e-5 * largest);
}

TEST_CASE("a plan without a checkpoint is made anew when preprocess_model is given one") {
  const Host host;
  const auto checkpoint = Checkpoint::open(test::golden("vectors/tiny_llama_bnb_nf4_dq"));
  const Value settings = *quantization_config_of(checkpoint.config());
  const auto skeleton = [&] {
    return build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(at::kHalf));
  };
  auto model = skeleton();
  auto quantizer = ModelQuantizer::from_config(host, settings, true);
  quantizer.make_plan(model);
  quantizer.preprocess_model(model, &checkpoint);
  quantizer.load_weights(model, checkpoint);
  CHECK(logits(model).isfinite().all().item<bool>());

  model = skeleton();
  auto without = ModelQuantizer::from_config(host, settings, true);
  without.preprocess_model(model);
  const auto error = test::thrown_by([&] { without.load_weights(model, checkpoint); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(), "the plan was made without a checkpoint"));
  CHECK(contains(error.what(), "give the checkpoint to preprocess_model"));
}

TEST_CASE("a device that is not here is refused, and cpu:0 is the CPU") {
  const Host host;
  const auto quantizer = ModelQuantizer::from_config(host, parse_json(kNf4));
  CHECK_THROWS_AS(quantizer.validate_environment(c10::Device(at::kCUDA, 99)), Error);
  quantizer.validate_environment(c10::Device(at::kCPU, 0));
  CHECK(quantizer.validate_environment("cpu:0") == c10::Device(at::kCPU, 0));
}
