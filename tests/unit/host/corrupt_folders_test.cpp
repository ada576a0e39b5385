#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "edited_folder.h"

using namespace graft;
using namespace graft::test;

namespace {

const std::string kV1 = "vectors/tiny_llama_gptq4_v1";
const std::string kV2ActOrder = "vectors/tiny_llama_gptq4_v2_desc_act";
const std::string kAwq = "vectors/tiny_llama_awq4_gemm";
const std::string kNf4 = "vectors/tiny_llama_bnb_nf4_dq";
const std::string kInt8 = "vectors/tiny_llama_bnb_int8";
const std::string kUp = "model.layers.0.mlp.up_proj";

void label_as(Value& config, const char* format) {
  settings_of(config).set("checkpoint_format", format);
}

EditedFolder::Edit tensors_only(const std::function<void(RawTensors&)>& edit) {
  return [edit](Value&, RawTensors& tensors) { edit(tensors); };
}

EditedFolder::Edit without(const std::string& name) {
  return tensors_only([name](RawTensors& tensors) { REQUIRE(tensors.erase(name) == 1); });
}

/// Asserts that loading fails as an invalid model, with each of the words in the message.
void refused(const std::string& golden, const EditedFolder::Edit& edit,
             const std::vector<std::string>& words, ErrorKind kind = ErrorKind::model) {
  TestHost host;
  const EditedFolder folder(golden, edit);
  const std::string text = host.refusal(folder);
  MESSAGE(text);
  for (const auto& word : words) CHECK_MESSAGE(contains(text, word), "expected: " << word);
  CHECK(contains(text, "; "));  // behind it stands what to do
  if (!text.empty()) CHECK(host.kind == kind);
}

/// Asserts that loading works and some note or doubt has the words.
void accepted(const std::string& golden, const EditedFolder::Edit& edit, const std::string& word,
              const std::function<void(HostOptions&)>& options = {}) {
  TestHost host(options);
  const EditedFolder folder(golden, edit);
  const std::string text = host.refusal(folder);
  REQUIRE_MESSAGE(text.empty(), text);
  std::string said;
  for (const auto* list : {&host.loaded->plan.notes, &host.loaded->plan.doubts})
    for (const auto& line : *list) said += line + "\n";
  CHECK_MESSAGE(contains(said, word), said);
}

void fill_words(RawTensors& tensors, const std::string& ending, std::uint32_t word) {
  for (auto& [name, raw] : tensors)
    if (name.ends_with(ending))
      for (std::size_t i = 0; i < raw.count(); ++i) raw.data<std::uint32_t>()[i] = word;
}

/// g_idx of one module.
std::int32_t* g_idx(RawTensors& tensors, const std::string& path = kUp) {
  return tensors.at(path + ".g_idx").data<std::int32_t>();
}

constexpr std::uint16_t kHalfNan = 0x7E00, kHalfInfinity = 0x7C00;

RawTensor text_tensor(const std::string& text) {
  RawTensor raw{Dtype::U8, {static_cast<std::int64_t>(text.size())}, nullptr};
  raw.bytes = std::make_shared<std::vector<unsigned char>>(text.begin(), text.end());
  return raw;
}

std::string blob(const std::string& changes) {
  return "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float16\", \"shape\": [96, 64]" +
         changes + "}";
}

}  // namespace

TEST_CASE("a v1 file that is labelled v2 is refused, or read as --trust says") {
  const auto relabel = [](Value& config, RawTensors&) { label_as(config, "gptq_v2"); };
  refused(kV1, relabel,
          {"model.layers.0.self_attn.q_proj", "'qzeros'", "contradict checkpoint_format",
           "expected gptq_v2 (v2) zero points", "found those of gptq in 14 of 14 modules",
           "--trust data"});
  accepted(kV1, relabel, "the tensors decide",
           [](HostOptions& options) { options.trust = Trust::data; });
  accepted(kV1, relabel, "--trust label",
           [](HostOptions& options) { options.trust = Trust::label; });
}

TEST_CASE("a v2 file that is labelled v1 is refused, as Transformers 5 writes it after a load") {
  refused(kV1, tensors_only([](RawTensors& tensors) {
            fill_words(tensors, ".qzeros", 0x88888888U);
          }),
          {"expected gptq (v1) zero points", "found those of gptq_v2", "off by one step"});
}

TEST_CASE("one module with the other zero points is found among the rest") {
  refused(kV1, tensors_only([](RawTensors& tensors) {
            fill_words(tensors, kUp + ".qzeros", 0x88888888U);
          }),
          {kUp, "in 1 of 14 modules"});
}

TEST_CASE("--trust data corrects the label that is written") {
  TestHost host([](HostOptions& options) { options.trust = Trust::data; });
  const EditedFolder folder(kV1, [](Value& config, RawTensors&) { label_as(config, "gptq_v2"); });
  REQUIRE(host.refusal(folder) == "");
  CHECK(host.loaded->quantization_config.at("checkpoint_format").as_string() == "gptq");
}

TEST_CASE("act order needs a g_idx") {
  refused(kV2ActOrder, without(kUp + ".g_idx"), {"lacks", kUp + ".g_idx"});
}

TEST_CASE("a stale g_idx is refused with act order and ignored without") {
  const auto zeros = tensors_only([](RawTensors& tensors) {
    std::fill(g_idx(tensors), g_idx(tensors) + 64, 0);
  });
  const auto rows = tensors_only([](RawTensors& tensors) {
    for (std::int32_t k = 0; k < 64; ++k) g_idx(tensors)[k] = k;
  });
  refused(kV2ActOrder, zeros, {kUp, "'g_idx'", "stale", "32 inputs in each of 2 groups"});
  refused(kV2ActOrder, rows, {kUp, "'g_idx'", "stale", "only counts the inputs"});
  accepted(kV1, zeros, "g_idx is stale");
  accepted(kV1, rows, "g_idx is stale");
}

TEST_CASE("a genuine g_idx is used although desc_act is false") {
  accepted(kV2ActOrder,
           [](Value& config, RawTensors&) { settings_of(config).set("desc_act", false); },
           "it is genuine and is used");
}

TEST_CASE("an index that no group has is refused with its position") {
  const auto outside = tensors_only([](RawTensors& tensors) { g_idx(tensors)[5] = 999; });
  refused(kV2ActOrder, outside, {kUp, "out of range", "0 to 1", "999 at position 5"});
  refused(kV1, outside, {kUp, "out of range", "999 at position 5", "--trust label"});
  accepted(kV1, outside, "is ignored",
           [](HostOptions& options) { options.trust = Trust::label; });
}

TEST_CASE("negative indices are refused, or counted from the end by --trust data") {
  const auto negative = tensors_only([](RawTensors& tensors) {
    for (std::int32_t k = 0; k < 64; ++k)
      if (g_idx(tensors)[k] == 1) g_idx(tensors)[k] = -1;
  });
  refused(kV2ActOrder, negative, {kUp, "negative entries", "--trust data"});
  accepted(kV2ActOrder, negative, "", [](HostOptions& options) { options.trust = Trust::data; });
}

TEST_CASE("a g_idx of the wrong length or type is refused") {
  refused(kV2ActOrder, tensors_only([](RawTensors& tensors) {
            auto& raw = tensors.at(kUp + ".g_idx");
            raw.shape = {32};
            raw.bytes->resize(128);
          }),
          {kUp + ".g_idx", "[32]", "[64]"});
  refused(kV2ActOrder, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".g_idx").dtype = Dtype::F32;
          }),
          {kUp + ".g_idx", "F32", "I32"});
}

TEST_CASE("missing scales, qweight and qzeros are named, never invented") {
  for (const auto& golden : {kV1, kAwq})
    for (const char* tensor : {".scales", ".qweight", ".qzeros"})
      refused(golden, without(kUp + tensor), {"lacks 1 tensor", kUp + tensor});
  refused(kNf4, without(kUp + ".weight.absmax"), {"lacks 1 tensor", kUp + ".weight.absmax"});
  refused(kInt8, without(kUp + ".SCB"), {"lacks 1 tensor", kUp + ".SCB"});
}

TEST_CASE("scales that are not finite are refused with their place, unless allowed") {
  for (const auto& golden : {kV1, kAwq}) {
    const auto broken = tensors_only([](RawTensors& tensors) {
      tensors.at(kUp + ".scales").data<std::uint16_t>()[97] = kHalfNan;
    });
    refused(golden, broken, {kUp + ".scales", "NaN at [1, 1]", "--allow-nonfinite"});
    accepted(golden, broken, "", [](HostOptions& options) { options.allow_nonfinite = true; });
  }
  refused(kV1, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".scales").data<std::uint16_t>()[0] = kHalfInfinity;
          }),
          {"infinity at [0, 0]"});
  refused(kInt8, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".SCB").data<float>()[3] = -std::numeric_limits<float>::infinity();
          }),
          {kUp + ".SCB", "-infinity at [3]"});
  refused(kNf4, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".weight.nested_absmax").data<float>()[0] = std::nanf("");
          }),
          {kUp + ".weight.nested_absmax", "NaN at [0]"});
}

TEST_CASE("zero and negative scales are loaded and told") {
  for (const auto& golden : {kV1, kAwq}) {
    accepted(golden, tensors_only([](RawTensors& tensors) {
               tensors.at(kUp + ".scales").data<std::uint16_t>()[7] = 0;
             }),
             "1 groups have scale 0");
    accepted(golden, tensors_only([](RawTensors& tensors) {
               tensors.at(kUp + ".scales").data<std::uint16_t>()[7] |= 0x8000;
             }),
             "negative scales (1 of 14 modules");
  }
}

TEST_CASE("a packed weight of another shape or type is refused with both") {
  refused(kV1, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".qweight").shape = {96, 8};
          }),
          {kUp + ".qweight", "[96, 8]", "[8, 96]"});
  refused(kV1, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".qweight").dtype = Dtype::F32;
          }),
          {kUp + ".qweight", "F32", "I32"});
  refused(kAwq, [](Value& config, RawTensors&) { settings_of(config).set("version", "gemv"); },
          {"do not fit the model", "qweight"});
  refused(kV1, [](Value& config, RawTensors&) { settings_of(config).set("bits", 8); },
          {"do not fit the model", "qweight"});
}

TEST_CASE("a dense weight in place of a packed one is kept dense and told") {
  accepted(kV1,
           tensors_only([](RawTensors& tensors) {
             for (const char* tensor : {".qweight", ".qzeros", ".scales", ".g_idx"})
               tensors.erase(kUp + tensor);
             RawTensor dense{Dtype::F16, {96, 64}, nullptr};
             dense.bytes = std::make_shared<std::vector<unsigned char>>(96 * 64 * 2);
             tensors.emplace(kUp + ".weight", dense);
           }),
           "the checkpoint is dense: 1 module(s), first '" + kUp + "'");
}

TEST_CASE("FP8 weights with scales beside them are not taken for the weights themselves") {
  for (const std::string scale : {"_scale", "_scale_inv"})
    refused("vectors/tiny_llama_dense_fp16", tensors_only([&](RawTensors& tensors) {
              RawTensor fp8{Dtype::F8_E4M3, {96, 64}, nullptr};
              fp8.bytes = std::make_shared<std::vector<unsigned char>>(96 * 64, 0x38);
              tensors.at(kUp + ".weight") = fp8;
              tensors.emplace(kUp + ".weight" + scale,
                              RawTensor{Dtype::F32, {1},
                                        std::make_shared<std::vector<unsigned char>>(4)});
            }),
            {"'" + kUp + ".weight' is F8_E4M3 in the scale '" + kUp + ".weight" + scale + "'",
             "expected the weights themselves"});
}

TEST_CASE("a bias of bitsandbytes is checked like its weights, and weight_format for its size") {
  TestHost host;
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
  const TemporaryFolder made(in_memory());
  const auto quantized = made.path() / "m";
  host.host->save(host.host->load(std::filesystem::path(GRAFT_TEST_DATA) / "arch/qwen2", options),
                  quantized);
  const std::string bias = "model.layers.0.self_attn.q_proj.bias";
  refused(quantized, tensors_only([&](RawTensors& tensors) {
            tensors.at(bias).data<float>()[1] = std::numeric_limits<float>::quiet_NaN();
          }),
          {bias, "NaN at [1]"});
  refused(quantized, tensors_only([&](RawTensors& tensors) {
            tensors.at(bias).dtype = Dtype::I32;
          }),
          {bias, "is I32, expected F16 or BF16 or F32"});
  refused(kInt8, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".weight_format") =
                RawTensor{Dtype::U8, {0}, std::make_shared<std::vector<unsigned char>>()};
          }),
          {kUp, "'weight_format'", "one number", "found 0"});
}

TEST_CASE("a quantized head is loaded, and refused when the config ties it") {
  const auto quantize_head = [](Value&, RawTensors& tensors) {
    tensors.erase("lm_head.weight");
    for (const char* tensor : {".qweight", ".qzeros", ".scales", ".g_idx"})
      tensors.emplace(std::string("lm_head") + tensor,
                      tensors.at("model.layers.0.self_attn.q_proj" + std::string(tensor)));
  };
  TestHost host;
  const EditedFolder folder(kV1, quantize_head);
  REQUIRE(host.refusal(folder) == "");
  CHECK(host.loaded->plan.count(Action::quantize) == 15);
  refused(kV1,
          [&](Value& config, RawTensors& tensors) {
            quantize_head(config, tensors);
            config.set("tie_word_embeddings", true);
          },
          {"lm_head", "ties", "tie_word_embeddings"});
}

TEST_CASE("zero biases and inv_freq of AutoGPTQ are kept for the file, other biases are added") {
  const auto add = [](std::uint16_t value) {
    return tensors_only([value](RawTensors& tensors) {
      RawTensor bias{Dtype::F16, {96}, std::make_shared<std::vector<unsigned char>>(192)};
      bias.data<std::uint16_t>()[0] = value;
      tensors.emplace(kUp + ".bias", bias);
      RawTensor inv_freq{Dtype::F32, {8}, std::make_shared<std::vector<unsigned char>>(32)};
      tensors.emplace("model.layers.0.self_attn.rotary_emb.inv_freq", inv_freq);
    });
  };
  accepted(kV1, add(0), "a bias of zeros that the model does not have");
  accepted(kV1, add(0x3C00), "a bias that the model does not have is added");
  TestHost host;
  const EditedFolder folder(kV1, add(0));
  REQUIRE(host.refusal(folder) == "");
  CHECK(host.loaded->plan.unexpected.empty());
  REQUIRE(host.loaded->plan.unloaded.size() == 1);
  CHECK(contains(host.loaded->plan.unloaded[0].source, "rotary_emb.inv_freq"));
  const auto out = folder.path() / ".." / (folder.path().filename().string() + "_saved");
  host.host->save(*host.loaded, out);
  const auto saved = Checkpoint::open(out);
  CHECK(saved.find(kUp + ".bias"));
  CHECK(saved.find("model.layers.0.self_attn.rotary_emb.inv_freq"));
  std::filesystem::remove_all(out);
}

TEST_CASE("zero_point false with zero points of their own is refused, or read as --trust says") {
  const auto symmetric = [](Value& config, RawTensors&) {
    settings_of(config).set("zero_point", false);
  };
  refused(kAwq, symmetric, {"'qzeros'", "zero_point", "8 everywhere", "--trust"});
  accepted(kAwq, symmetric, "the tensors decide",
           [](HostOptions& options) { options.trust = Trust::data; });
  accepted(kAwq, [](Value& config, RawTensors& tensors) {
    settings_of(config).set("zero_point", false);
    std::erase_if(tensors, [](const auto& item) { return item.first.ends_with(".qzeros"); });
  }, "zero_point false says that they are 8");
}

TEST_CASE("weights beyond half precision are kept in float32") {
  accepted(kAwq, tensors_only([](RawTensors& tensors) {
             tensors.at(kUp + ".scales").data<std::uint16_t>()[0] = 0x7000;  // 8192
           }),
           "kept in float32");
}

TEST_CASE("a quant_state that cannot be right is refused with its field") {
  const std::string name = kUp + ".weight.quant_state.bitsandbytes__nf4";
  const auto with = [&](const std::string& text) {
    return tensors_only([=](RawTensors& tensors) { tensors.at(name) = text_tensor(text); });
  };
  const std::string nested =
      ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": ";
  refused(kNf4, with("{\"quant_type\": "), {kUp, "quant_state", "JSON"});
  for (const char* size : {"0", "63", "31", "8192", "-64"})
    refused(kNf4,
            with(blob(nested + "0.1, \"blocksize_\": 1").replace(blob("").find("64,"), 2, size)),
            {"plugin org.graft.bnb 0.1.0: " + kUp +
                 ": tensor 'weight.quant_state.bitsandbytes__nf4': field 'blocksize'",
             "expected a power of two from 32 to 4096, found " + std::string(size)});
  refused(kNf4, with(blob("")), {"nested_offset", "a number"});
  refused(kNf4, with(blob(nested + "\"x\"")), {"nested_offset"});
  refused(kNf4, with(blob(nested + "NaN")), {kUp, "JSON"});
  refused(kNf4, with(blob(nested + "1e999")), {kUp, "JSON"});
  refused(kNf4, with(blob(nested + "0.1").replace(blob("").find("[96, 64]"), 8, "[64, 96]")),
          {"'shape'", "[96, 64]", "[64, 96]"});
  refused(kNf4, with(blob(nested + "0.1").replace(blob("").find("nf4"), 3, "fp4")),
          {"'quant_type'", "nf4", "fp4"});
  refused(kNf4, without(name), {"no quant_state"});
}

TEST_CASE("companions of a 4-bit weight with wrong sizes or tables are refused") {
  const auto resize = [](const std::string& ending, std::int64_t count) {
    return tensors_only([=](RawTensors& tensors) {
      auto& raw = tensors.at(kUp + ending);
      raw.shape = {count};
      raw.bytes->resize(static_cast<std::size_t>(count) * size_of(raw.dtype));
    });
  };
  refused(kNf4, resize(".weight.absmax", 95), {"'weight.absmax'", "96 elements", "95"});
  for (const std::int64_t count : {0, 15, 17, 256})
    refused(kNf4, resize(".weight.quant_map", count),
            {"'weight.quant_map'", "16 elements", std::to_string(count)});
  for (const std::int64_t count : {0, 16, 255, 257})
    refused(kNf4, resize(".weight.nested_quant_map", count),
            {"'weight.nested_quant_map'", "256 elements", std::to_string(count)});
  refused(kNf4, resize(".weight.nested_absmax", 2), {"'weight.nested_absmax'", "1 elements"});
  refused("vectors/tiny_llama_bnb_fp4", tensors_only([](RawTensors& tensors) {
            const Checkpoint nf4 =
                Checkpoint::open(std::filesystem::path(GRAFT_TEST_DATA) / kNf4);
            nf4.read(nf4.at(kUp + ".weight.quant_map"),
                     tensors.at(kUp + ".weight.quant_map").bytes->data());
          }),
          {"'weight.quant_map'", "the table of fp4", "that of nf4"});
  refused(kNf4, tensors_only([](RawTensors& tensors) {
            auto& raw = tensors.at(kUp + ".weight");
            raw.shape = {100, 1};
            raw.bytes->resize(100);
          }),
          {kUp, "'weight'", "3072 bytes", "100"});
}

TEST_CASE("the run-time layout of bitsandbytes' CPU kernels is refused and explained") {
  refused("vectors/tiny_llama_bnb_fp4", tensors_only([](RawTensors& tensors) {
            auto& raw = tensors.at(kUp + ".weight.absmax");
            raw.dtype = Dtype::BF16;
            raw.shape = {1, 96};
            raw.bytes->resize(192);
          }),
          {kUp, "'weight.absmax'", "bfloat16 [1, 96]", "before the model runs"});
}

TEST_CASE("a packed 4-bit weight is read in any shape") {
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{3072}, {1, 3072}, {48, 64}})
    accepted(kNf4, tensors_only([&](RawTensors& tensors) {
               tensors.at(kUp + ".weight").shape = shape;
             }),
             "");
}

TEST_CASE("an int8 layout of old GPUs is refused") {
  refused(kInt8, tensors_only([](RawTensors& tensors) {
            tensors.at(kUp + ".weight_format").data<std::uint8_t>()[0] = 2;
          }),
          {kUp, "'weight_format'", "row-major", "2"});
}
