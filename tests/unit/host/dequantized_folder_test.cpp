// Dense folders made from quantized ones: what other readers of dense folders find in them.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <map>

#include "graft/module_graph.h"

#include "edited_folder.h"
#include "model_folder.h"
#include "model_logits.h"
#include "thrown_by.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

const std::string kV1 = "vectors/tiny_llama_gptq4_v1";
const std::string kUp = "model.layers.0.mlp.up_proj";

std::map<std::string, std::vector<std::int64_t>> shapes(const Checkpoint& checkpoint) {
  std::map<std::string, std::vector<std::int64_t>> out;
  for (const auto& info : checkpoint.tensors()) out[info.name] = info.shape;
  return out;
}

LoadOptions nf4() {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  options.dtype = at::kFloat;
  return options;
}

}  // namespace

TEST_CASE("a dequantized folder of every architecture has the dense one's tensors and runs as it") {
  TestHost host;
  for (const auto& folder : fs::directory_iterator(golden("arch"))) {
    if (!fs::exists(folder.path() / "config.json")) continue;
    CAPTURE(folder.path().filename().string());
    const TemporaryFolder out(in_memory());
    const Checkpoint source = Checkpoint::open(folder.path());
    host.host->save(host.host->load(source, nf4()), out.path() / "quantized");
    auto loaded = host.host->load(out.path() / "quantized");
    const auto before = logits(loaded.model);
    host.host->dequantize(loaded, at::kFloat);
    const auto after = logits(loaded.model);
    host.host->save(loaded, out.path() / "dense");
    const auto dense = host.host->load(out.path() / "dense");
    CHECK(shapes(dense.checkpoint) == shapes(source));
    const double largest = after.abs().max().item<double>();
    // Experts in one piece and separate ones add in another order.
    CHECK((logits(dense.model) - after).abs().max().item<double>() <= 1e-5 * largest);
    CHECK((before - after).abs().max().item<double>() <= 1e-4 * largest);
  }
}

TEST_CASE("a model dequantized to another dtype runs in it, and dequantizing it again only casts") {
  TestHost host;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto loaded = host.host->load(golden("vectors/tiny_llama_bnb_nf4_dq"));
    host.host->dequantize(loaded, dtype);
    for (const auto& parameter : loaded.model->named_parameters())
      CHECK_MESSAGE((parameter.value().scalar_type() == dtype), parameter.key());
    CHECK(logits(loaded.model).isfinite().all().item<bool>());
    host.host->dequantize(loaded, at::kHalf);
    CHECK(logits(loaded.model).isfinite().all().item<bool>());
  }
  auto loaded = host.host->load(golden("vectors/tiny_llama_bnb_nf4_dq"));
  for (const auto dtype : {at::kInt, at::kDouble})
    CHECK_THROWS_WITH_AS(host.host->dequantize(loaded, dtype),
                         doctest::Contains("expected float32, bfloat16 or float16"), Error);
}

TEST_CASE("weights that a dtype does not hold are refused, and the model stays as it was") {
  const std::string last = "model.layers.1.mlp.up_proj";
  TestHost host;
  const EditedFolder folder(kV1, [&](Value&, RawTensors& tensors) {
    tensors.at(last + ".scales").data<std::uint16_t>()[0] = 0x7800;  // 32768
  });
  for (const auto dtype : {at::kHalf, at::kBFloat16}) {
    LoadOptions options;
    options.dtype = dtype;
    auto loaded = host.host->load(folder.path(), options);
    const auto error = thrown_by([&] { host.host->dequantize(loaded, at::kHalf); });
    CHECK(error.kind() == ErrorKind::usage);
    CHECK(contains(error.what(), last + ".weight: values do not fit into the dtype"));
    CHECK(contains(error.what(), "choose bfloat16 or float32"));
    CHECK(count(loaded.model, "QuantLinear") == 14);
    CHECK((loaded.model->named_parameters()["model.norm.weight"].scalar_type() == dtype));
    host.host->dequantize(loaded, at::kFloat);
    CHECK(logits(loaded.model).isfinite().all().item<bool>());
  }
}

TEST_CASE("what a model keeps in float32 stays so when the rest becomes bfloat16") {
  TestHost host;
  auto loaded = host.host->load(golden("arch/deepseek_v3"), nf4());
  host.host->dequantize(loaded, at::kBFloat16);
  std::size_t kept = 0;
  for (const auto& parameter : loaded.model->named_parameters()) {
    const bool routes = parameter.key().ends_with("e_score_correction_bias");
    kept += routes;
    CHECK_MESSAGE((parameter.value().scalar_type() == (routes ? at::kFloat : at::kBFloat16)),
                  parameter.key());
  }
  CHECK(kept > 0);
  CHECK(logits(loaded.model).isfinite().all().item<bool>());
}

TEST_CASE("a bias that the dense model does not have is not lost when the model is dequantized") {
  TestHost host;
  const EditedFolder folder(kV1, [](Value&, RawTensors& tensors) {
    RawTensor bias{Dtype::F16, {96}, std::make_shared<std::vector<unsigned char>>(192)};
    bias.data<std::uint16_t>()[0] = 0x3C00;
    tensors.emplace(kUp + ".bias", bias);
  });
  auto loaded = host.host->load(folder.path());
  host.host->dequantize(loaded, at::kHalf);
  const TemporaryFolder out(in_memory());
  CHECK_THROWS_WITH_AS(host.host->save(loaded, out.path() / "m"),
                       doctest::Contains((kUp + ".bias: the dense model has no place").c_str()),
                       Error);
  CHECK_FALSE(fs::exists(out.path() / "m"));
}

TEST_CASE("the 16-bit weight that llm_int8_has_fp16_weight keeps is what dequantizing gives") {
  TestHost host;
  const std::string dense = "vectors/tiny_llama_dense_fp16";
  const EditedFolder folder(dense, [](Value& config, RawTensors&) {
    config.set("quantization_config",
               parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true,
                              "llm_int8_has_fp16_weight": true})"));
  });
  auto loaded = host.host->load(folder.path());
  host.host->dequantize(loaded, at::kHalf);
  const auto source = host.host->load(golden(dense));
  const auto ours = loaded.model->named_parameters();
  for (const auto& parameter : source.model->named_parameters())
    CHECK_MESSAGE(at::equal(parameter.value(), ours[parameter.key()]), parameter.key());
}
