// Operators of the plugins, over tensors as they lie in files. Expected ones are of GPTQModel,
// AutoAWQ and bitsandbytes.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <functional>

#include "graft/host.h"
#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;

namespace {

using MaybeTensor = std::optional<at::Tensor>;

/// An operator of a plugin; loads the plugins.
template <class Signature>
auto op(const char* name) {
  static const Host host{HostOptions()};
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

/// A tensor of a file with vectors.
at::Tensor vector(const std::string& file, const std::string& name) {
  const auto checkpoint =
      Checkpoint::open_file(GRAFT_TEST_DATA "/vectors/" + file + ".safetensors");
  const auto& info = checkpoint.at(name);
  auto out = at::empty({static_cast<std::int64_t>(info.bytes)}, at::kByte);
  checkpoint.read(info, out.mutable_data_ptr());
  return out.view(scalar_type(info.dtype)).view(info.shape);
}

/// What is thrown names the argument and what was found.
void check_refused(const std::function<void()>& call, const std::string& argument,
                   const std::string& found) {
  CAPTURE(argument);
  CAPTURE(found);
  const std::string text = test::message_of(call);
  CHECK(contains(text, argument));
  CHECK(contains(text, "found " + found));
}

struct Gptq {
  explicit Gptq(int width) : bits(width) {
    const std::string file = "gptq_" + std::to_string(bits) + "bit_64x32_g32";
    qweight = vector(file, "qweight");
    scales = vector(file, "scales");
    v1 = vector(file, "qzeros_v1_asym");
    v2 = vector(file, "qzeros_v2_asym");
    g_idx = vector(file, "g_idx");
    g_idx_desc_act = vector(file, "g_idx_desc_act");
    weight = vector(file, "weight_asym");
    weight_desc_act = vector(file, "weight_desc_act");
    weight_sym = vector(file, "weight_sym");
    v1_sym = vector(file, "qzeros_v1_sym");
  }
  at::Tensor dequantize(const at::Tensor& zeros, const MaybeTensor& order, bool is_v2) const {
    return op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const MaybeTensor&, std::int64_t, std::int64_t, bool)>(
               "graft_gptq::dequantize")
        .call(qweight, zeros, scales, order, bits, group_size, is_v2);
  }
  at::Tensor linear(const at::Tensor& x, const MaybeTensor& bias = {}) const {
    return op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const MaybeTensor&, std::int64_t, std::int64_t, bool, const MaybeTensor&)>(
               "graft_gptq::linear")
        .call(x, qweight, v1, scales, g_idx, bits, group_size, false, bias);
  }
  std::int64_t bits, group_size = 32;
  at::Tensor qweight, scales, v1, v2, g_idx, g_idx_desc_act, weight, weight_desc_act, weight_sym,
      v1_sym;
};

struct Awq {
  explicit Awq(const std::string& layout) : version(layout) {
    const std::string file = "awq_4bit_128x32_g64";
    qweight = vector(file, layout + ".qweight");
    qzeros = vector(file, layout + ".qzeros");
    scales = vector(file, layout + ".scales");
    weight = vector(file, "weight");
  }
  at::Tensor dequantize() const {
    return op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, std::int64_t,
                         std::string_view)>("graft_awq::dequantize")
        .call(qweight, qzeros, scales, group_size, version);
  }
  at::Tensor linear(const at::Tensor& x, const MaybeTensor& bias = {}) const {
    return op<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         std::int64_t, const MaybeTensor&, std::string_view)>("graft_awq::linear")
        .call(x, qweight, qzeros, scales, group_size, bias, version);
  }
  std::string version;
  std::int64_t group_size = 64;
  at::Tensor qweight, qzeros, scales, weight;
};

auto quantize_4bit(const at::Tensor& x, std::string_view type, std::int64_t blocksize) {
  return op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, std::string_view, std::int64_t)>(
             "graft_bnb::quantize_4bit")
      .call(x, type, blocksize);
}

at::Tensor dequantize_4bit(const at::Tensor& packed, const at::Tensor& absmax,
                           std::string_view type, std::int64_t blocksize, at::IntArrayRef shape,
                           at::ScalarType dtype) {
  return op<at::Tensor(const at::Tensor&, const at::Tensor&, std::string_view, std::int64_t,
                       at::IntArrayRef, at::ScalarType)>("graft_bnb::dequantize_4bit")
      .call(packed, absmax, type, blocksize, shape, dtype);
}

auto int8_quant(const at::Tensor& x) {
  return op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&)>(
             "graft_bnb::int8_vectorwise_quant")
      .call(x);
}

at::Tensor int8_dequant(const at::Tensor& codes, const at::Tensor& absmax) {
  return op<at::Tensor(const at::Tensor&, const at::Tensor&)>("graft_bnb::int8_vectorwise_dequant")
      .call(codes, absmax);
}

/// The product in float32 of a weight [N, K].
double furthest(const at::Tensor& y, const at::Tensor& x, const at::Tensor& weight) {
  const auto expected = at::linear(x.to(at::kFloat), weight.to(at::kFloat));
  return (y.to(at::kFloat) - expected).abs().max().item<double>() /
         expected.abs().max().item<double>();
}

}  // namespace

TEST_CASE("graft_gptq::dequantize gives GPTQModel's weights of each width, zero rule and order") {
  for (const int bits : {2, 3, 4, 8}) {
    CAPTURE(bits);
    const Gptq given(bits);
    const auto half = [](const at::Tensor& weight) { return weight.to(at::kHalf); };
    CHECK(given.dequantize(given.v1, given.g_idx, false).equal(half(given.weight)));
    CHECK(given.dequantize(given.v2, {}, true).equal(half(given.weight)));
    CHECK(given.dequantize(given.v1_sym, {}, false).equal(half(given.weight_sym)));
    CHECK(given.dequantize(given.v1_sym, given.g_idx_desc_act, false)
              .equal(half(given.weight_desc_act)));
  }
}

TEST_CASE("graft_gptq::linear and graft_awq::linear multiply with those weights") {
  for (const auto dtype : {at::kFloat, at::kHalf, at::kBFloat16}) {
    CAPTURE(std::string(c10::toString(dtype)));
    const double tolerance = dtype == at::kFloat ? 1e-5 : 0.03;
    const auto x = at::arange(3 * 64, at::kFloat).view({3, 64}).sin().to(dtype);
    const Gptq gptq(4);
    const auto y = gptq.linear(x);
    CHECK((y.scalar_type() == dtype));
    CHECK(furthest(y, x, gptq.dequantize(gptq.v1, gptq.g_idx, false)) < tolerance);
    const auto bias = at::ones({32}, dtype);
    CHECK((gptq.linear(x, bias) - y - 1).abs().max().item<double>() < 0.1);
    CHECK(gptq.linear(x.narrow(0, 0, 0)).sizes() == at::IntArrayRef{0, 32});
    const auto wide = at::arange(2 * 128, at::kFloat).view({1, 2, 128}).sin().to(dtype);
    const Awq awq("gemm");
    CHECK(awq.linear(wide).sizes() == at::IntArrayRef{1, 2, 32});
    CHECK(furthest(awq.linear(wide), wide, awq.weight) < tolerance);
  }
}

TEST_CASE("graft_awq::dequantize gives AutoAWQ's weights of each layout") {
  for (const char* layout : {"gemm", "gemv", "gemv_fast"}) {
    CAPTURE(layout);
    const Awq given(layout);
    const auto weight = given.dequantize();
    CHECK((weight.scalar_type() == at::kHalf));
    CHECK(weight.equal(given.weight.to(at::kHalf)));
  }
}

TEST_CASE("graft_bnb's operators give bitsandbytes' bytes and numbers") {
  const std::string file = "bnb_4bit_64x128";
  const auto input = vector(file, "input");
  for (const std::string type : {"nf4", "fp4"}) {
    CAPTURE(type);
    const auto [packed, absmax] = quantize_4bit(input, type, 64);
    CHECK(packed.equal(vector(file, type + ".weight")));
    CHECK(absmax.equal(vector(file, type + ".weight.absmax")));
    CHECK(dequantize_4bit(packed, absmax, type, 64, {64, 128}, at::kHalf)
              .equal(vector(file, type + ".dequant")));
    // An odd number of elements, and a block that is not full.
    const auto [few, of_few] = quantize_4bit(input.view({-1}).narrow(0, 0, 67), type, 32);
    CHECK(few.sizes() == at::IntArrayRef{34, 1});
    CHECK(of_few.sizes() == at::IntArrayRef{3});
    CHECK(dequantize_4bit(few, of_few, type, 32, {67}, at::kFloat).sizes() == at::IntArrayRef{67});
  }
  CHECK(std::get<1>(quantize_4bit(at::empty({0, 3}), "nf4", 64)).numel() == 0);
  CHECK(dequantize_4bit(at::empty({0}, at::kByte), at::empty({0}), "nf4", 64, {0, 3}, at::kFloat)
            .numel() == 0);

  const std::string rows = "bnb_int8_32x64";
  const auto [codes, absmax] = int8_quant(vector(rows, "weight_fp16"));
  CHECK(codes.equal(vector(rows, "weight")));
  CHECK(absmax.equal(vector(rows, "SCB")));
  const auto again = int8_dequant(codes.view({4, 8, 64}), absmax);
  CHECK(again.sizes() == at::IntArrayRef{4, 8, 64});
  CHECK((again.view({32, 64}) - vector(rows, "weight_fp16").to(at::kFloat))
            .abs()
            .le(absmax.unsqueeze(1) / 254 * 1.001)
            .all()
            .item<bool>());
}

TEST_CASE("operators give shapes on meta") {
  const auto meta = [](const at::Tensor& tensor) { return tensor.to(at::kMeta); };
  Gptq gptq(3);
  for (auto* tensor : {&gptq.qweight, &gptq.scales, &gptq.v1, &gptq.g_idx}) *tensor = meta(*tensor);
  const auto weight = gptq.dequantize(gptq.v1, {}, false);
  CHECK(weight.is_meta());
  CHECK(weight.sizes() == at::IntArrayRef{32, 64});
  CHECK((weight.scalar_type() == at::kHalf));
  CHECK(gptq.linear(at::empty({2, 5, 64}, at::kMeta)).sizes() == at::IntArrayRef{2, 5, 32});
  Awq awq("gemv");
  for (auto* tensor : {&awq.qweight, &awq.qzeros, &awq.scales}) *tensor = meta(*tensor);
  CHECK(awq.dequantize().sizes() == at::IntArrayRef{32, 128});
  CHECK(awq.linear(at::empty({128}, at::kMeta)).sizes() == at::IntArrayRef{32});
  const auto x = at::empty({5, 77}, at::TensorOptions(at::kMeta).dtype(at::kBFloat16));
  const auto [packed, absmax] = quantize_4bit(x, "fp4", 128);
  CHECK(packed.sizes() == at::IntArrayRef{193, 1});
  CHECK(absmax.sizes() == at::IntArrayRef{4});
  CHECK(dequantize_4bit(packed, absmax, "fp4", 128, {5, 77}, at::kHalf).sizes() == x.sizes());
  const auto [codes, rows] = int8_quant(x);
  CHECK((codes.scalar_type() == at::kChar));
  CHECK(rows.sizes() == at::IntArrayRef{5});
  CHECK(int8_dequant(codes, rows).sizes() == x.sizes());
}

TEST_CASE("graft_gptq's operators refuse what does not fit, and name it") {
  const Gptq good(4);
  const auto dequantize = [&](const std::function<void(Gptq&)>& spoil) {
    return [&good, spoil] {
      Gptq given = good;
      spoil(given);
      given.dequantize(given.v1, given.g_idx, false);
    };
  };
  const auto as_long = [](at::Tensor& tensor) { tensor = tensor.to(at::kLong); };
  const auto shorter = [](at::Tensor& tensor) { tensor = tensor.narrow(1, 1, tensor.size(1) - 1); };
  check_refused(dequantize([](Gptq& g) { g.bits = 5; }), "bits", "5");
  check_refused(dequantize([](Gptq& g) { g.bits = 0; }), "bits", "0");
  check_refused(dequantize([](Gptq& g) { g.bits = std::int64_t{1} << 40; }), "bits", "1099");
  check_refused(dequantize([](Gptq& g) { g.group_size = 0; }), "group_size", "0");
  check_refused(dequantize([](Gptq& g) { g.group_size = -2; }), "group_size", "-2");
  check_refused(dequantize([](Gptq& g) { g.group_size = INT64_MAX; }), "group_size", "9223");
  check_refused(dequantize([](Gptq& g) { g.group_size = 16; }), "'qzeros'", "Int [2, 4] on cpu");
  check_refused(dequantize([&](Gptq& g) { as_long(g.qweight); }), "'qweight'", "Long [8, 32]");
  check_refused(dequantize([](Gptq& g) { g.qweight = g.qweight.view({-1}); }), "'qweight'",
                "Int [256]");
  check_refused(dequantize([](Gptq& g) { g.qweight = g.qweight.narrow(0, 0, 7); }), "'qweight'",
                "Int [7, 32]");
  check_refused(dequantize([](Gptq& g) { g.qweight = g.qweight.narrow(1, 0, 0); }), "'qweight'",
                "Int [8, 0]");
  check_refused(dequantize([](Gptq& g) {
                  g.qweight = at::zeros({1, 1}, at::kInt).expand({std::int64_t{1} << 60, 1});
                }),
                "'qweight'", "Int [1152921504606846976, 1]");
  check_refused(dequantize([&](Gptq& g) { shorter(g.v1); }), "'qzeros'", "Int [2, 3]");
  check_refused(dequantize([&](Gptq& g) { shorter(g.scales); }), "'scales'", "Half [2, 31]");
  check_refused(dequantize([](Gptq& g) { g.scales = g.scales.to(at::kDouble); }), "'scales'",
                "Double [2, 32]");
  check_refused(dequantize([](Gptq& g) { g.scales = g.scales.to(at::kMeta); }), "'scales'",
                "Half [2, 32] on meta");
  check_refused(dequantize([&](Gptq& g) { as_long(g.g_idx); }), "'g_idx'", "Long [64]");
  check_refused(dequantize([](Gptq& g) { g.g_idx = g.g_idx.view({8, 8}); }), "'g_idx'",
                "Int [8, 8]");
  check_refused(dequantize([](Gptq& g) { g.g_idx = g.g_idx.narrow(0, 0, 0); }), "'qweight'",
                "Int [8, 32]");
  check_refused(dequantize([](Gptq& g) { g.g_idx = g.g_idx + 1; }), "'g_idx'", "2 at position 32");
  check_refused(dequantize([](Gptq& g) { g.g_idx = g.g_idx - 7; }), "'g_idx'", "-7 at position 0");
  const auto x = at::ones({2, 64});
  check_refused([&] { good.linear(at::ones({2, 65})); }, "'qweight'", "Int [8, 32]");
  check_refused([&] { good.linear(at::ones({2, 0})); }, "'x'", "Float [2, 0]");
  check_refused([&] { good.linear(at::ones({})); }, "'x'", "Float []");
  check_refused([&] { good.linear(x.to(at::kInt)); }, "'x'", "Int [2, 64]");
  check_refused([&] { good.linear(at::ones({1}).expand({2, INT64_MAX / 8})); }, "'qweight'",
                "Int [8, 32]");
  check_refused([&] { good.linear(x, at::ones({31})); }, "'bias'", "Float [31]");
  check_refused([&] { good.linear(x, at::ones({32}, at::kInt)); }, "'bias'", "Int [32]");
}

TEST_CASE("graft_awq's operators refuse what does not fit, and name it") {
  const Awq good("gemm");
  const auto dequantize = [&](const std::function<void(Awq&)>& spoil) {
    return [&good, spoil] {
      Awq given = good;
      spoil(given);
      given.dequantize();
    };
  };
  check_refused(dequantize([](Awq& a) { a.version = "marlin"; }), "version", "\"marlin\"");
  check_refused(dequantize([](Awq& a) { a.group_size = 1; }), "group_size", "1");
  check_refused(dequantize([](Awq& a) { a.group_size = 128; }), "'qzeros'", "Int [2, 4]");
  check_refused(dequantize([](Awq& a) { a.version = "gemv"; }), "'qzeros'", "Int [2, 4]");
  check_refused(dequantize([](Awq& a) {
                  a.version = "gemv";
                  a.group_size = 16;
                }),
                "'qweight'", "gemv has groups of 32");
  check_refused(dequantize([](Awq& a) { a.version = "gemv_fast"; }), "'qweight'", "4 inputs");
  check_refused(dequantize([](Awq& a) { a.qweight = a.qweight.to(at::kShort); }), "'qweight'",
                "Short [128, 4]");
  check_refused(dequantize([](Awq& a) { a.qweight = a.qweight[0]; }), "'qweight'", "Int [4]");
  check_refused(dequantize([](Awq& a) { a.qzeros = a.qzeros.narrow(0, 0, 1); }), "'qzeros'",
                "Int [1, 4]");
  check_refused(dequantize([](Awq& a) { a.scales = a.scales.t(); }), "'scales'", "Half [32, 2]");
  check_refused([&] { good.linear(at::ones({2, 127})); }, "'x'", "Float [2, 127]");
  check_refused([&] { good.linear(at::ones({2, 128}), at::ones({1})); }, "'bias'", "Float [1]");
}

TEST_CASE("graft_bnb's operators refuse what does not fit, and name it") {
  const auto x = at::ones({64});
  check_refused([&] { quantize_4bit(x, "int4", 64); }, "'quant_type'", "'int4'");
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{-64}, std::int64_t{48},
                                  std::int64_t{16}, std::int64_t{8192}, INT64_MIN})
    check_refused([&] { quantize_4bit(x, "nf4", size); }, "'blocksize'", std::to_string(size));
  check_refused([&] { quantize_4bit(x.to(at::kDouble), "nf4", 64); }, "'x'", "Double [64]");
  for (const double value : {NAN, INFINITY})
    CHECK_THROWS_AS(quantize_4bit(x * value, "nf4", 64), Error);

  const auto packed = at::zeros({32, 1}, at::kByte), absmax = at::ones({1});
  const auto dequantize = [&](const at::Tensor& bytes, const at::Tensor& most,
                              std::vector<std::int64_t> shape, at::ScalarType dtype = at::kFloat) {
    return [=] { dequantize_4bit(bytes, most, "nf4", 64, shape, dtype); };
  };
  check_refused(dequantize(packed, absmax, {65}), "'packed'", "Byte [32, 1]");
  check_refused(dequantize(packed, absmax, {-64}), "'shape'", "[-64]");
  check_refused(dequantize(packed, absmax, {INT64_MAX, 3}), "'shape'", "[9223372036854775807, 3]");
  check_refused(dequantize(packed, absmax, {INT64_MAX}), "'packed'", "Byte [32, 1]");
  check_refused(dequantize(packed, absmax, {64}, at::kInt), "'dtype'", "Int");
  check_refused(dequantize(packed.to(at::kChar), absmax, {64}), "'packed'", "Char [32, 1]");
  check_refused(dequantize(packed, at::ones({2}), {64}), "'absmax'", "Float [2]");
  check_refused(dequantize(packed, absmax.to(at::kHalf), {64}), "'absmax'", "Half [1]");
  check_refused(dequantize(packed, absmax.to(at::kMeta), {64}), "'absmax'", "Float [1] on meta");

  check_refused([&] { int8_quant(x.to(at::kInt)); }, "'x'", "Int [64]");
  check_refused([&] { int8_quant(at::ones({})); }, "'x'", "Float []");
  check_refused([&] { int8_quant(at::ones({3, 0})); }, "'x'", "Float [3, 0]");
  check_refused([&] { int8_quant(x * NAN); }, "'x'", "NaN");
  const auto codes = at::zeros({2, 8}, at::kChar);
  check_refused([&] { int8_dequant(codes, at::ones({3})); }, "'absmax'", "Float [3]");
  check_refused([&] { int8_dequant(codes.to(at::kByte), at::ones({2})); }, "'codes'",
                "Byte [2, 8]");
}
