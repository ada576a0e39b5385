// Saving what a ModelQuantizer converted.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

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
const std::string kNf4 = "vectors/tiny_llama_bnb_nf4_dq";

Value int8_settings() {
  return parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})");
}

std::shared_ptr<Model> skeleton(const Checkpoint& checkpoint) {
  return build_model(checkpoint.config(), at::TensorOptions(at::kMeta).dtype(at::kHalf));
}

void check_equal_folders(const fs::path& a, const fs::path& b) {
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(a)) {
    CAPTURE(entry.path().filename().string());
    ++files;
    CHECK(test::read_file(entry.path()) == test::read_file(b / entry.path().filename()));
  }
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(b)) --files;
  CHECK(files == 0);
}

struct Net : nn::Block {
  Net()
      : Block("Net"),
        body(register_module(
            "body", torch::nn::Sequential(torch::nn::Linear(64, 32), torch::nn::BatchNorm1d(32),
                                          torch::nn::Linear(32, 8)))) {
    adopt_linears(body.ptr());
  }
  at::Tensor forward(const at::Tensor& x) { return body->forward(x); }
  torch::nn::Sequential body;
};

}  // namespace

TEST_CASE("a model converted step by step is saved as the host saves it") {
  const Host host;
  const test::TemporaryFolder out;
  LoadOptions options;
  std::string folder = kNf4;
  bool pre_quantized = true;
  SUBCASE("quantized already") {}
  SUBCASE("on the fly, with a module left out") {
    folder = kDense;
    pre_quantized = false;
    options.quantization_config = int8_settings();
    options.quantization_config.set("llm_int8_skip_modules",
                                    Value(Value::Array{"model.layers.1.mlp.up_proj"}));
  }
  const auto checkpoint = Checkpoint::open(test::golden(folder));
  const auto model = skeleton(checkpoint);
  const Value settings = pre_quantized ? *quantization_config_of(checkpoint.config())
                                       : options.quantization_config;
  auto quantizer = ModelQuantizer::from_config(host, settings, pre_quantized);
  quantizer.preprocess_model(model, &checkpoint);
  quantizer.load_weights(model, checkpoint);
  quantizer.postprocess_model(model);
  quantizer.save(model, out.path() / "steps");
  host.save(host.load(checkpoint, options), out.path() / "host");
  check_equal_folders(out.path() / "steps", out.path() / "host");
}

TEST_CASE("a dequantized model is saved dense, without settings") {
  const Host host;
  const test::TemporaryFolder out;
  const auto checkpoint = Checkpoint::open(test::golden(kNf4));
  const auto model = skeleton(checkpoint);
  auto quantizer =
      ModelQuantizer::from_config(host, *quantization_config_of(checkpoint.config()), true);
  quantizer.preprocess_model(model, &checkpoint);
  quantizer.load_weights(model, checkpoint);
  quantizer.dequantize(model);
  quantizer.save(model, out.path() / "dense");
  const auto again = host.load(out.path() / "dense");
  CHECK(again.plan.method.empty());
  CHECK(again.checkpoint.config().find("quantization_config") == nullptr);
  const c10::InferenceMode guard;
  CHECK(at::equal(logits(again.model), logits(model)));
}

TEST_CASE("a model made in memory is saved with the tensors of LibTorch's own layers") {
  const Host host;
  const test::TemporaryFolder out;
  const auto net = std::make_shared<Net>();
  net->eval();
  Value settings = int8_settings();
  settings.set("llm_int8_skip_modules", Value(Value::Array{"body.2"}));
  auto quantizer = ModelQuantizer::from_config(host, settings, false);
  quantizer.postprocess_model(net);
  const Value config = parse_json(R"({"model_type": "net", "hidden_size": 64})");
  quantizer.save(net, out.path() / "net", {}, config);

  const auto saved = Checkpoint::open(out.path() / "net");
  CHECK(saved.config().get_string("model_type", "") == "net");
  CHECK(saved.config().get_string("dtype", "") == "float32");
  const Value* written = saved.config().find("quantization_config");
  REQUIRE(written);
  CHECK(contains(to_json(*written->find("llm_int8_skip_modules")), "body.2"));
  std::vector<std::string> names;
  for (const auto& info : saved.tensors()) names.push_back(info.name);
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{
                     "body.0.SCB", "body.0.bias", "body.0.weight", "body.0.weight_format",
                     "body.1.bias", "body.1.num_batches_tracked", "body.1.running_mean",
                     "body.1.running_var", "body.1.weight", "body.2.bias", "body.2.weight"});
  CHECK(saved.at("body.0.weight").dtype == Dtype::I8);
  CHECK(saved.at("body.2.weight").dtype == Dtype::F32);
}

TEST_CASE("what cannot be saved yet is refused, and nothing is written") {
  const Host host;
  const test::TemporaryFolder out;
  const fs::path folder = out.path() / "saved";
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  auto quantizer = ModelQuantizer::from_config(host, int8_settings(), false);
  const auto refused = [&](const std::shared_ptr<nn::Block>& model, const Value& config = {}) {
    const auto error = test::thrown_by([&] { quantizer.save(model, folder, {}, config); });
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(!fs::exists(folder));
    return std::string(error.what());
  };
  const auto net = std::make_shared<Net>();
  CHECK(contains(refused(net), "save before preprocess_model: there is no plan yet"));
  SUBCASE("a model that is not converted") {
    quantizer.preprocess_model(net);
    CHECK(contains(refused(net), "save: the model is not converted yet"));
    CHECK(contains(refused(std::make_shared<Net>()), "another model"));
  }
  SUBCASE("a model without a config") {
    quantizer.postprocess_model(net);
    CHECK(contains(refused(net), "made in memory, so its config is not known"));
    CHECK(contains(refused(net, Value("gpt")), "save: config: expected an object, found \"gpt\""));
  }
  SUBCASE("a plan without the checkpoint that the weights come from") {
    const auto model = skeleton(checkpoint);
    quantizer.preprocess_model(model);
    quantizer.load_weights(model, checkpoint);
    quantizer.postprocess_model(model);
    CHECK(contains(refused(model), "give the checkpoint to preprocess_model"));
  }
  SUBCASE("tensors without values") {
    const auto quantized = Checkpoint::open(test::golden(kNf4));
    quantizer =
        ModelQuantizer::from_config(host, *quantization_config_of(quantized.config()), true);
    const auto model = skeleton(quantized);
    quantizer.preprocess_model(model, &quantized);
    CHECK(contains(refused(model), "save before load_weights: the tensor has no values"));
  }
}
