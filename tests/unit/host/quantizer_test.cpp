#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include "edited_folder.h"
#include "graft/nn/unary.h"
#include "graft/tensors.h"

using namespace graft;
using namespace graft::test;

namespace {

// The quantizers of the plugins, on single modules.

TestHost& host() {
  static TestHost instance;
  return instance;
}

const Quantizer& quantizer(const std::string& method) {
  for (const auto* library : host().host->plugins().libraries())
    if (const auto* found = library->quantizer(method)) return *found;
  throw std::runtime_error("no plugin has the method " + method);
}

ModuleSpec spec_of(std::int64_t inputs, std::int64_t outputs, const char* class_name = "Linear") {
  ModuleSpec spec;
  spec.path = "m";
  spec.class_name = class_name;
  spec.in_features = inputs;
  spec.out_features = outputs;
  return spec;
}

/// Random tensors for everything that the quantizer requires.
Tensors random_tensors(const Quantizer& q, const ModuleSpec& spec, const QuantConfig& config,
                       at::ScalarType scale_type) {
  at::manual_seed(3);
  Tensors out;
  for (const auto& tensor : q.tensors(spec, config)) {
    if (!tensor.required) continue;
    const auto type = tensor.dtypes.front();
    if (c10::isFloatingType(type))
      out.set(tensor.name, (at::rand(*tensor.shape) + 0.5).to(scale_type));
    else if (type == at::kShort)
      out.set(tensor.name, at::randint(-32768, 32768, *tensor.shape, at::kShort));
    else
      out.set(tensor.name,
              at::randint(INT32_MIN, INT32_MAX, *tensor.shape, at::kLong).to(at::kInt));
  }
  return out;
}

std::shared_ptr<nn::Unary> filled(const Quantizer& q, const ModuleSpec& spec,
                                  const QuantConfig& config, const Tensors& tensors) {
  auto module = std::dynamic_pointer_cast<nn::Unary>(q.build(spec, config));
  REQUIRE(module);
  q.fill(*module, config, tensors);
  return module;
}

double worst(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kFloat) - b.to(at::kFloat)).abs().max().item<double>();
}

Tensors quantized(const std::string& settings, const ModuleSpec& spec, const at::Tensor& weight,
                  std::shared_ptr<nn::Block>* module = nullptr) {
  const auto& q = quantizer("bitsandbytes");
  const auto config = q.parse(parse_json(settings));
  const auto result = q.quantize({{{spec, config, {{"weight", weight}}}}, {}}, {});
  if (module) *module = result.modules.at(0);
  return q.save(*result.modules.at(0), *config);
}

constexpr const char* kNf4 = R"({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})";
constexpr const char* kInt8 = R"({"load_in_8bit": true})";

}  // namespace

TEST_CASE("matrices of every odd shape run, and give what their dequantized weight gives") {
  const c10::InferenceMode guard;
  for (const auto& [method, settings, inputs, outputs] :
       std::vector<std::tuple<std::string, std::string, std::int64_t, std::int64_t>>{
           {"gptq", R"({"bits": 4, "group_size": 32})", 1, 1},
           {"gptq", R"({"bits": 3, "group_size": 32})", 1, 1},
           {"gptq", R"({"bits": 3, "group_size": 32})", 70, 37},
           {"gptq", R"({"bits": 2, "group_size": 1024})", 50, 33},
           {"gptq", R"({"bits": 8, "group_size": 16})", 100, 1},
           {"gptq", R"({"bits": 4, "group_size": -1})", 33, 9},
           {"gptq", R"({"bits": 4, "group_size": 64, "sym": false})", 1000, 300},
           {"awq", R"({"bits": 4, "group_size": 32})", 1, 8},
           {"awq", R"({"bits": 4, "group_size": 64})", 100, 24},
           {"awq", R"({"bits": 4, "group_size": -1})", 65, 8},
           {"awq", R"({"bits": 4, "group_size": 64, "version": "gemv"})", 104, 16},
           {"awq", R"({"bits": 4, "group_size": 128, "version": "gemv_fast"})", 192, 16}}) {
    const auto& q = quantizer(method);
    const auto config = q.parse(parse_json(settings));
    const auto spec = spec_of(inputs, outputs);
    REQUIRE_MESSAGE(q.supports(spec, *config).yes, settings);
    for (const auto type : {at::kHalf, at::kBFloat16, at::kFloat}) {
      const auto tensors = random_tensors(q, spec, *config, type);
      const auto module = filled(q, spec, *config, tensors);
      const auto weight = q.dequantize(*module);
      CHECK((weight.scalar_type() == type));
      CHECK((weight.sizes() == at::IntArrayRef({outputs, inputs})));
      CHECK(at::isfinite(weight).all().item<bool>());
      const auto x = at::randn({2, 3, inputs});
      const auto expected = at::matmul(x, weight.to(at::kFloat).t());
      const double scale = expected.abs().max().item<double>();
      CHECK(worst(module->forward(x), expected) <= 1e-5 * scale);
      CHECK((module->forward(x.to(at::kBFloat16)).scalar_type() == at::kBFloat16));
      for (const auto& [name, tensor] : q.save(*module, *config))
        CHECK_MESSAGE(tensor.equal(tensors.at(name)), name);
    }
  }
}

TEST_CASE("AWQ refuses shapes and groups that its layouts do not have") {
  const auto& q = quantizer("awq");
  const auto reason = [&](const std::string& settings, std::int64_t inputs, std::int64_t outputs) {
    return q.supports(spec_of(inputs, outputs), *q.parse(parse_json(settings))).reason;
  };
  CHECK(contains(reason(R"({"group_size": 32})", 64, 12), "12 outputs are no multiple of 8"));
  CHECK(contains(reason(R"({"version": "gemv"})", 60, 16), "60 inputs are no multiple of 8"));
  CHECK(contains(reason(R"({"version": "gemv", "group_size": 16})", 64, 16), "not of 16"));
}

TEST_CASE("half-precision weights that overflow are multiplied in float32") {
  const c10::InferenceMode guard;
  for (const std::string method : {"gptq", "awq"}) {
    const auto& q = quantizer(method);
    const auto config = q.parse(parse_json(R"({"bits": 4, "group_size": 32})"));
    const auto spec = spec_of(64, 16);
    auto tensors = random_tensors(q, spec, *config, at::kHalf);
    // The second has scales that half precision does not have itself.
    for (const auto& scales :
         {at::full({2, 16}, 30000.0, at::kHalf), at::full({2, 16}, 1e6, at::kBFloat16)}) {
      tensors.set("scales", scales);
      const auto module = filled(q, spec, *config, tensors);
      const auto y = module->forward(at::ones({1, 64}) * 1e-3);
      CHECK(at::isfinite(y).all().item<bool>());
      CHECK(y.abs().max().item<double>() > 100);
    }
  }
}

TEST_CASE("4-bit weights of any size and storage come back, where blocks straddle rows too") {
  const c10::InferenceMode guard;
  for (const auto& [rows, columns] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {3, 5}, {7, 96}, {33, 65}}) {
    for (const char* type : {"nf4", "fp4"}) {
      std::shared_ptr<nn::Block> module;
      const auto weight = at::randn({rows, columns});
      const auto saved = quantized(
          std::string(R"({"load_in_4bit": true, "bnb_4bit_quant_type": ")") + type + "\"}",
          spec_of(columns, rows), weight, &module);
      CHECK(saved.at("weight").numel() == (rows * columns + 1) / 2);
      const auto dense = quantizer("bitsandbytes").dequantize(*module);
      CHECK(worst(dense, weight) < 0.35 * weight.abs().max().item<double>());
      const auto x = at::randn({2, columns});
      const auto y = std::dynamic_pointer_cast<nn::Unary>(module)->forward(x);
      CHECK(worst(y, at::mm(x, dense.t())) < 1e-4);
    }
  }
}

TEST_CASE("blocks of every size are read") {
  const auto& q = quantizer("bitsandbytes");
  const auto config = q.parse(parse_json(kNf4));
  const auto spec = spec_of(100, 90);
  at::manual_seed(1);
  for (std::int64_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
    const std::int64_t count = 9000, blocks = (count + blocksize - 1) / blocksize;
    const auto packed = at::randint(0, 256, {count / 2, 1}, at::kByte);
    const auto absmax = at::rand({blocks}), table = at::linspace(-1, 1, 16);
    const std::string text = R"({"quant_type": "nf4", "blocksize": )" + std::to_string(blocksize) +
                             R"(, "dtype": "float32", "shape": [90, 100]})";
    auto blob = at::empty({static_cast<std::int64_t>(text.size())}, at::kByte);
    std::copy(text.begin(), text.end(), blob.mutable_data_ptr<std::uint8_t>());
    const auto module = filled(q, spec, *config,
                               {{"weight", packed},
                                {"weight.absmax", absmax},
                                {"weight.quant_map", table},
                                {"weight.quant_state.bitsandbytes__nf4", blob}});
    const auto codes = at::stack({packed.view({-1}).to(at::kLong).div(16, "floor"),
                                  packed.view({-1}).to(at::kLong).remainder(16)},
                                 1)
                           .view({-1});
    const auto block = at::arange(count).div(blocksize, "floor");
    const auto expected =
        (table.index_select(0, codes) * absmax.index_select(0, block)).view({90, 100});
    CHECK(q.dequantize(*module).equal(expected));
  }
}

TEST_CASE("weights of zeros, one constant and dead columns quantize to finite ones") {
  const auto& q = quantizer("bitsandbytes");
  for (const char* settings :
       {kNf4, R"({"load_in_4bit": true, "bnb_4bit_use_double_quant": true})", kInt8})
    for (const auto& weight :
         {at::zeros({16, 64}), at::full({16, 64}, 0.25),
          at::randn({16, 64}) * at::arange(64).remainder(2),                // columns
          at::randn({16, 64}) * at::arange(16).remainder(2).view({16, 1}),  // rows
          at::randn({16, 64}).index_fill_(1, at::full({1}, 5, at::kLong), 0.25)}) {
      std::shared_ptr<nn::Block> module;
      quantized(settings, spec_of(64, 16), weight, &module);
      const auto dense = q.dequantize(*module);
      CHECK(at::isfinite(dense).all().item<bool>());
      CHECK(worst(dense, weight) <= 0.3 * weight.abs().max().item<double>() + 1e-6);
    }
}

TEST_CASE("a weight with NaN is not quantized") {
  auto weight = at::randn({16, 64});
  weight[3][5] = std::nan("");
  for (const char* settings : {kNf4, kInt8})
    CHECK_THROWS_AS(quantized(settings, spec_of(64, 16), weight), Error);
}

TEST_CASE("a null for load_in_4bit says nothing, and what is written for it is read again") {
  const auto& q = quantizer("bitsandbytes");
  const auto config = q.parse(parse_json(R"({"load_in_4bit": null})"));
  const Value written = q.describe(*config);
  CHECK(written.at("load_in_4bit").as_bool());
  CHECK(q.describe(*q.parse(written)) == written);
}
