#include "checkpoint/gguf_model.h"

#include <doctest/doctest.h>

#include <cmath>

#include "checkpoint/gguf_rope.h"
#include "gguf_bytes.h"
#include "graft/error.h"

using namespace graft;
using namespace graft::test;

namespace {

std::string refused(const GgufBytes& file) {
  return refusal([&] { describe_gguf_model(parse_gguf(file.file())); });
}

}  // namespace

TEST_CASE("a llama gets the config and the names of Transformers") {
  const GgufHeader header = parse_gguf(small_llama().file());
  const GgufModel model = describe_gguf_model(header);
  CHECK(to_json(model.config) ==
        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", )"
        R"("hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, )"
        R"("num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 4, )"
        R"("max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, )"
        R"("attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, )"
        R"("eos_token_id": 3})");
  REQUIRE(model.tensors.size() == 11);
  CHECK(model.tensors[0].name == "model.embed_tokens.weight");
  CHECK(model.tensors[2].name == "model.layers.0.self_attn.q_proj.weight");
  CHECK(model.tensors[2].interleaved_heads == 2);
  CHECK(model.tensors[3].interleaved_heads == 1);
  CHECK(model.tensors[4].interleaved_heads == 0);
  CHECK(model.tensors.back().name == "model.norm.weight");
}

TEST_CASE("an output tensor is a head of its own") {
  auto file = small_llama().tensor("output.weight", {8, 4});
  const GgufHeader header = parse_gguf(file.file());
  const GgufModel model = describe_gguf_model(header);
  CHECK(model.tensors.back().name == "lm_head.weight");
  CHECK_FALSE(model.config.get_bool("tie_word_embeddings", true));
}

TEST_CASE("the ends of a turn end an answer") {
  const GgufHeader header = parse_gguf(small_llama()
                                           .u32("tokenizer.ggml.eot_token_id", 2)
                                           .u32("tokenizer.ggml.eom_token_id", 3)
                                           .file());
  const GgufModel model = describe_gguf_model(header);
  CHECK(to_json(model.config.at("eos_token_id")) == "3");
  CHECK(to_json(model.generation_config) == R"({"eos_token_id": [3, 2]})");
  CHECK(contains(refused(small_llama().u32("tokenizer.ggml.bos_token_id", 4)),
                 "'tokenizer.ggml.bos_token_id': no such token: expected below 4, found 4"));
}

TEST_CASE("files that are no whole model of a known architecture are refused") {
  CHECK(contains(refused(small_llama().text("general.architecture", "mamba")),
                 "expected one of llama, qwen2, qwen3, found 'mamba'"));
  CHECK(contains(refused(small_llama().text("general.type", "adapter")),
                 "this GGUF file is no model"));
  CHECK(contains(refused(small_llama().set("split.count", GgufType::u16, le<std::uint16_t>(3))),
                 "one of several files of a model: found 3 files"));
  CHECK(contains(refused(small_llama().u32("general.quantization_version", 1)),
                 "'general.quantization_version'"));
  CHECK(contains(refused(small_llama().remove("general.architecture")),
                 "the metadata has no 'general.architecture'"));
}

TEST_CASE("metadata that may change results is refused unless it is understood") {
  CHECK(contains(refused(small_llama().f32("llama.logit_scale", 2)),
                 "'llama.logit_scale': unknown metadata that may change results"));
  CHECK(contains(refused(small_llama().u32("llama.expert_count", 8)),
                 "models with experts cannot be imported"));
  CHECK(refused(small_llama().u32("llama.expert_count", 0)) == "");
  CHECK(contains(refused(small_llama().u32("llama.rope.dimension_count", 2)),
                 "rotation of a part of each head"));
  CHECK(refused(small_llama().u32("llama.rope.dimension_count", 4)) == "");
  CHECK(contains(refused(small_llama().u32("llama.attention.value_length", 8)),
                 "keys and values of different sizes"));
  CHECK(
      contains(refused(small_llama().u32("llama.attention.sliding_window", 32)), "sliding window"));
  CHECK(refused(small_llama().u32("llama.attention.sliding_window", 64)) == "");
  CHECK(contains(refused(small_llama().flag("llama.attention.causal", false)), "not causal"));
  CHECK(contains(refused(small_llama().flag("llama.use_parallel_residual", true)),
                 "parallel residuals"));
  CHECK(contains(refused(small_llama().u32("llama.nextn_predict_layers", 1)),
                 "predict several tokens"));
  CHECK(contains(refused(small_llama().text("llama.tensor_data_layout", "other")),
                 "unknown layout of tensors"));
  CHECK(contains(refused(small_llama().u32("llama.vocab_size", 5)),
                 "vocab_size is not the number of tokens"));
}

TEST_CASE("sizes that cannot be are refused") {
  CHECK(contains(refused(small_llama().u32("llama.block_count", 0)), "'llama.block_count'"));
  CHECK(contains(refused(small_llama().u32("llama.block_count", 0x7FFFFFFF)),
                 "more layers than tensors"));
  CHECK(contains(refused(small_llama().u32("llama.block_count", 0x80000000)),
                 "a size is out of range"));
  CHECK(contains(refused(small_llama().text("llama.block_count", "1")), "wrong type of metadata"));
  CHECK(contains(refused(small_llama().remove("llama.block_count")), "no 'llama.block_count'"));
  CHECK(contains(refused(small_llama().u32("llama.attention.head_count", 3)),
                 "a multiple of head_count"));
  CHECK(contains(refused(small_llama().u32("llama.attention.head_count_kv", 3)),
                 "a multiple of head_count_kv"));
  CHECK(contains(refused(small_llama().u32("llama.attention.key_length", 3)), "must be even"));
  CHECK(contains(refused(small_llama().f32("llama.attention.layer_norm_rms_epsilon", -1)),
                 "a number must be positive"));
  CHECK(contains(refused(small_llama().f32("llama.rope.freq_base", 0)), "must be positive"));
}

TEST_CASE("tensors are all there, in shape, and no others") {
  auto missing = small_llama();
  missing.tensors.pop_back();
  CHECK(contains(refused(missing), "the tensor 'blk.0.ffn_down.weight' is missing"));
  CHECK(contains(refused(small_llama().tensor("blk.0.ffn_gate_inp.weight", {8})),
                 "the model of this architecture has no tensor 'blk.0.ffn_gate_inp.weight'"));
  auto wrong = small_llama();
  wrong.tensors[3].sizes = {4, 16};
  CHECK(contains(refused(wrong),
                 "tensor 'blk.0.attn_q.weight': wrong shape: expected [8, 8], found [16, 4]"));
  CHECK(contains(refused(small_llama().tensor("blk.0.attn_q.bias", {8})),
                 "the tensor 'blk.0.attn_k.bias' is missing"));
}

TEST_CASE("linear rope scaling is mapped, others are refused") {
  const auto linear =
      small_llama().text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4);
  const GgufHeader header = parse_gguf(linear.file());
  CHECK(to_json(describe_gguf_model(header).config.at("rope_scaling")) ==
        R"({"rope_type": "linear", "factor": 4.0})");
  CHECK(contains(refused(small_llama().text("llama.rope.scaling.type", "yarn")), "found 'yarn'"));
  CHECK(contains(refused(small_llama().u32("llama.rope.scaling.original_context_length", 32)),
                 "unknown metadata"));
}

TEST_CASE("rotary factors are recognised as those of Llama 3.1 or refused") {
  // By transformers 5.23.0, _compute_llama3_parameters: unscaled / scaled frequencies of head_dim
  // 16, theta 500000, factor 8.
  std::vector<float> factors;
  for (const double wavelength : {6.283185307179586, 32.40270, 167.1037, 861.7681, 4442.883})
    factors.push_back(wavelength < 2048
                          ? 1.0f
                          : static_cast<float>(1.0 / ((1 - (8192 / wavelength - 1) / 3) / 8 +
                                                      (8192 / wavelength - 1) / 3)));
  for (int i = 5; i < 8; ++i) factors.push_back(8.0f);
  CHECK(to_json(llama3_rope_scaling(factors, 500000.0)) ==
        R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, )"
        R"("high_freq_factor": 4.0, "original_max_position_embeddings": 8192})");
  CHECK(llama3_rope_scaling(std::vector<float>(8, 1.0f), 500000.0).is_null());
  factors[3] = 1.01f;
  CHECK(contains(refusal([&] { llama3_rope_scaling(factors, 500000.0); }),
                 "'rope_freqs.weight': these rotary frequencies are no scaling of Llama 3"));
  factors.back() = std::nanf("");
  CHECK(refusal([&] { llama3_rope_scaling(factors, 500000.0); }) != "");

  const GgufHeader header = parse_gguf(small_llama().tensor("rope_freqs.weight", {2}).file());
  CHECK(describe_gguf_model(header).rope_factors != nullptr);
  CHECK(contains(refused(small_llama().tensor("rope_freqs.weight", {3})),
                 "tensor 'rope_freqs.weight': wrong shape or type"));
  CHECK(contains(
      refused(small_llama().tensor("rope_freqs.weight", {2}).f32("llama.rope.scaling.factor", 2)),
      "two scalings of the rotation at once"));
}
