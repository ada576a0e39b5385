#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "edited_folder.h"
#include "graft/activations.h"
#include "graft/module_graph.h"
#include "graft/tensors.h"

using namespace graft;
using namespace graft::test;

namespace {

bool is_named(const std::string& name, const char* part) {
  return name.find(part) != std::string::npos;
}

namespace fs = std::filesystem;

const std::vector<std::string> kGptq{"quant/gptq-w2-g32",
                                     "quant/gptq-w3-g32",
                                     "quant/gptq-w4-g32",
                                     "quant/gptq-w4-g32-act",
                                     "quant/gptq-w4-g32-v2",
                                     "quant/gptq-w4-dynamic",
                                     "quant/gptq-w8-gall-act",
                                     "quant/gptq-w4-g128-asym",
                                     "quant/gptq-w4-qwen3moe",
                                     "vectors/tiny_llama_gptq3_v1",
                                     "vectors/tiny_llama_gptq4_v1",
                                     "vectors/tiny_llama_gptq8_v1",
                                     "vectors/tiny_llama_gptq4_v2_desc_act"};
const std::vector<std::string> kAwq{"quant/awq-w4-g32", "quant/awq-w4-g32-mixtral",
                                    "vectors/tiny_llama_awq4_gemm"};
const std::vector<std::string> kBnb{"vectors/tiny_llama_bnb_nf4_dq", "vectors/tiny_llama_bnb_fp4",
                                    "vectors/tiny_llama_bnb_int8"};

fs::path golden(const std::string& name) { return fs::path(GRAFT_TEST_DATA) / name; }

at::Tensor read(const Checkpoint& file, const std::string& name) {
  const auto& info = file.at(name);
  auto tensor = at::empty(info.shape, scalar_type(info.dtype));
  file.read(info, tensor.data_ptr());
  return tensor;
}

Checkpoint answers(const std::string& name) {
  const auto folder = golden(name);
  const auto file =
      folder / (is_named(name, "bnb") && !is_named(name, "int8") ? "flat_reference.safetensors"
                                                                 : "expected.safetensors");
  return Checkpoint::open_file(fs::exists(file) ? file : folder / "reference.safetensors");
}

LoadedModel load(TestHost& host, const fs::path& folder, Value settings = {}) {
  LoadOptions options;
  options.dtype = at::kFloat;
  options.quantization_config = std::move(settings);
  return host.host->load(folder, options);
}

double worst_logit(const LoadedModel& loaded, const Checkpoint& expected,
                   const std::string& logits) {
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = read(expected, "input_ids");
  const auto found = loaded.model->forward(batch).to(at::kFloat);
  return (found - read(expected, logits)).abs().max().item<double>();
}

double worst_logit(const LoadedModel& loaded, const std::string& name) {
  const auto expected = answers(name);
  return worst_logit(loaded, expected, expected.find("logits") ? "logits" : "logits_f32");
}

at::Tensor weight_of(const LoadedModel& loaded, const std::string& path) {
  for (const auto& entry : loaded.plan.entries)
    if (entry.spec.path == path) {
      const auto [parent, name] = get_module_from_name(loaded.model, path);
      const auto child = *parent->named_children().find(name);
      return entry.quantizer->dequantize(dynamic_cast<const nn::Block&>(*child));
    }
  throw std::runtime_error("no module " + path);
}

struct OutputFolder : TemporaryFolder {
  OutputFolder() : TemporaryFolder(in_memory()) {}
  fs::path at(const std::string& name) const { return path() / name; }
};

void check_same_tensors(const fs::path& found_folder, const fs::path& expected_folder) {
  const auto found = Checkpoint::open(found_folder), expected = Checkpoint::open(expected_folder);
  REQUIRE(found.tensors().size() == expected.tensors().size());
  for (const auto& info : expected.tensors()) {
    const auto& other = found.at(info.name);
    CHECK_MESSAGE(other.dtype == info.dtype, info.name);
    CHECK_MESSAGE(other.shape == info.shape, info.name);
    std::vector<char> a(info.bytes), b(other.bytes);
    expected.read(info, a.data());
    found.read(other, b.data());
    CHECK_MESSAGE(a == b, info.name);
  }
}

std::vector<std::string> all_folders() {
  auto all = kGptq;
  all.insert(all.end(), kAwq.begin(), kAwq.end());
  all.insert(all.end(), kBnb.begin(), kBnb.end());
  return all;
}

}  // namespace

TEST_CASE("quantized folders of other libraries give their logits in float32") {
  TestHost host;
  for (const auto& name : all_folders()) {
    if (is_named(name, "int8")) continue;
    const double worst = worst_logit(load(host, golden(name)), name);
    MESSAGE(name << ": largest difference " << worst);
    CHECK(worst <= 2e-4);
  }
}

TEST_CASE("panels multiplied in 15 bits give the library's logits, act-order and odd bits too") {
  struct Mode {
    Mode() { set_activation_mode(GRAFT_ACT_A15); }
    ~Mode() { set_activation_mode(GRAFT_ACT_AUTO); }
  } const mode;
  TestHost host;
  // Scales in float16: the library's weights are rounded to 11 bits, those of panels are not.
  for (const std::string name :
       {"vectors/tiny_llama_gptq3_v1", "vectors/tiny_llama_gptq4_v1", "vectors/tiny_llama_gptq8_v1",
        "vectors/tiny_llama_gptq4_v2_desc_act", "vectors/tiny_llama_awq4_gemm"}) {
    const double worst = worst_logit(load(host, golden(name)), name);
    MESSAGE(name << ": largest difference " << worst);
    CHECK(worst <= 2e-4);
    CHECK(worst > 1e-6);  // another path than the one of float32
  }
}

TEST_CASE("LLM.int8 gives the library's logits in its own way and the dense ones on request") {
  TestHost host;
  const std::string name = "vectors/tiny_llama_bnb_int8";
  const auto expected = answers(name);
  const double own =
      worst_logit(host.host->load(golden(name)), expected, "logits_library_fp16");  // in float16
  const double dense = worst_logit(
      load(host, golden(name), Value(Value::Object{{"graft_int8_forward", "dequant"}})), name);
  MESSAGE("largest difference " << own << ", dequantized " << dense);
  CHECK(own <= 2e-3);
  CHECK(dense <= 2e-4);
}

TEST_CASE("dequantized weights are exactly those of GPTQModel, in the dtype of their scales") {
  TestHost host;
  std::size_t compared = 0;
  for (const auto& name : all_folders()) {
    if (!name.starts_with("quant/")) continue;
    const auto loaded = load(host, golden(name));
    const auto expected = answers(name);
    for (const auto& info : expected.tensors()) {
      if (!info.name.starts_with("weight:")) continue;
      CHECK_MESSAGE(
          weight_of(loaded, info.name.substr(7)).to(at::kFloat).equal(read(expected, info.name)),
          std::string(name + " " + info.name));
      ++compared;
    }
  }
  CHECK(compared == 22);
}

TEST_CASE("loading and saving gives back every tensor and every field of the config") {
  TestHost host;
  const OutputFolder out;
  for (const auto& name : all_folders()) {
    const auto folder = out.at(fs::path(name).filename().string());
    LoadOptions options;
    host.host->save(host.host->load(golden(name), options), folder);
    check_same_tensors(folder, golden(name));
    for (const char* file : {"config.json", "quantize_config.json"}) {
      if (!fs::exists(golden(name) / file)) continue;
      const auto parse = [&](const fs::path& from) {
        const auto size = fs::file_size(from / file);
        std::string text(size, '\0');
        std::unique_ptr<std::FILE, int (*)(std::FILE*)> in(std::fopen((from / file).c_str(), "rb"),
                                                           &std::fclose);
        REQUIRE(std::fread(text.data(), 1, size, in.get()) == size);
        return parse_json(text);
      };
      CHECK_MESSAGE(to_json(parse(folder)) == to_json(parse(golden(name))),
                    std::string(name + " " + file));
    }
  }
}

TEST_CASE("loading in another dtype and saving still gives back the file's tensors") {
  TestHost host;
  const OutputFolder out;
  const std::string name = "quant/gptq-w4-g32";
  host.host->save(load(host, golden(name)), out.at("saved"));
  check_same_tensors(out.at("saved"), golden(name));
}

TEST_CASE("a format turns into another with the same logits, and back bit for bit") {
  TestHost host;
  const OutputFolder out;
  int number = 0;
  const auto there_and_back = [&](const std::string& name, const std::string& to,
                                  const std::string& back) {
    auto loaded = load(host, golden(name));
    const auto weight = weight_of(loaded, "model.layers.0.self_attn.q_proj");
    host.host->set_format(loaded, to);
    const auto there = out.at(std::to_string(number++)), again = out.at(std::to_string(number++));
    host.host->save(loaded, there);
    auto converted = load(host, there);
    CHECK(converted.quantization_config != loaded.checkpoint.config().at("quantization_config"));
    CHECK(weight_of(converted, "model.layers.0.self_attn.q_proj").equal(weight));
    CHECK(worst_logit(converted, name) <= 2e-4);
    host.host->set_format(converted, back);
    host.host->save(converted, again);
    check_same_tensors(again, golden(name));
  };
  for (const auto& name : kGptq) {
    const bool v2 = is_named(name, "v2");
    there_and_back(name, v2 ? "gptq" : "gptq_v2", v2 ? "gptq_v2" : "gptq");
  }
  for (const auto& name : kAwq) there_and_back(name, "gemv", "gemm");
  there_and_back("quant/awq-w4-g32", "gemv_fast", "gemm");
  for (const char* storage : {"bfloat16", "float32", "float64", "int8", "float16"})
    there_and_back("vectors/tiny_llama_bnb_nf4_dq", storage, "uint8");
}

TEST_CASE("GEMV and GEMVFast turn into each other") {
  TestHost host;
  const OutputFolder out;
  auto loaded = load(host, golden("quant/awq-w4-g32"));
  host.host->set_format(loaded, "gemv");
  host.host->save(loaded, out.at("gemv"));
  auto gemv = load(host, out.at("gemv"));
  host.host->set_format(gemv, "gemv_fast");
  host.host->save(gemv, out.at("fast"));
  auto fast = load(host, out.at("fast"));
  CHECK(worst_logit(fast, "quant/awq-w4-g32") <= 2e-4);
  host.host->set_format(fast, "gemv");
  host.host->save(fast, out.at("again"));
  check_same_tensors(out.at("again"), out.at("gemv"));
}

TEST_CASE("a layout that cannot hold a module is refused before a folder is made") {
  TestHost host;
  const OutputFolder out;
  auto awq = load(host, golden("vectors/tiny_llama_awq4_gemm"));
  host.host->set_format(awq, "gemv_fast");
  CHECK_THROWS_WITH_AS(host.host->save(awq, out.at("x")),
                       doctest::Contains("96 inputs are no multiple of 64"), Error);
  CHECK_FALSE(fs::exists(out.at("x")));
  CHECK_THROWS_WITH_AS(host.host->set_format(awq, "marlin"),
                       doctest::Contains("one of gemm, gemv, gemv_fast"), Error);
  auto eight = load(host, golden("vectors/tiny_llama_bnb_int8"));
  CHECK_THROWS_WITH_AS(host.host->set_format(eight, "bfloat16"),
                       doctest::Contains("one format only"), Error);
  auto dense = load(host, golden("vectors/tiny_llama_dense_fp16"));
  CHECK_THROWS_WITH_AS(host.host->set_format(dense, "gptq"), doctest::Contains("not quantized"),
                       Error);
}

TEST_CASE("a dequantized folder is dense and gives the same logits") {
  TestHost host;
  const OutputFolder out;
  for (const std::string name :
       {"quant/gptq-w4-g32-act", "quant/awq-w4-g32", "vectors/tiny_llama_bnb_nf4_dq"}) {
    const auto folder = out.at(fs::path(name).filename().string());
    auto loaded = load(host, golden(name));
    host.host->dequantize(loaded, at::kFloat);
    host.host->save(loaded, folder);
    const auto dense = load(host, folder);
    CHECK(dense.plan.method.empty());
    CHECK(dense.plan.unexpected.empty());
    CHECK_FALSE(fs::exists(folder / "quantize_config.json"));
    CHECK(worst_logit(dense, name) <= 2e-4);
  }
}
