#include "running/decoding_loop.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <cmath>

#include "../models/folder.h"
#include "graft/evaluate.h"
#include "graft/generate.h"
#include "graft/host.h"
#include "graft/nn/layers.h"
#include "plugins/torch_threads.h"

namespace graft::tests {
namespace {

LoadedModel load(const std::string& folder, at::ScalarType dtype) {
  static const Host host{HostOptions{}};
  LoadOptions options;
  options.dtype = dtype;
  return host.load(golden(folder), options);
}

/// Tokens of no language.
std::vector<std::int64_t> some_ids(const Model& model, std::int64_t count) {
  const std::int64_t vocabulary = model.text_config().get_int("vocab_size", 1);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < count; ++i) ids.push_back((i * 37 + 11) % vocabulary);
  return ids;
}

/// Logits [V] after all of `ids`, by the model's own forward.
at::Tensor by_forward(Model& model, std::vector<std::int64_t> ids) {
  Batch batch;
  batch.input_ids =
      at::from_blob(ids.data(), {1, static_cast<std::int64_t>(ids.size())}, at::kLong).clone();
  batch.last_logits_only = true;
  return model.forward(batch).view({-1}).to(at::kFloat);
}

at::Tensor tensor(std::span<const float> logits) {
  return at::from_blob(const_cast<float*>(logits.data()),
                       {static_cast<std::int64_t>(logits.size())}, at::kFloat)
      .clone();
}

/// The largest difference between the loop, fed with pieces of `ids`, and forward, over the largest
/// logit.
double difference(Model& model, const std::vector<std::int64_t>& ids,
                  const std::vector<std::size_t>& pieces) {
  const auto loop = DecodingLoop::of(model);
  REQUIRE(loop);
  std::size_t done = 0;
  double most = 0;
  for (const auto count : pieces) {
    const auto found = tensor(loop->next(std::span(ids).subspan(done, count)));
    done += count;
    const auto expected =
        by_forward(model, {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(done)});
    most = std::max(most, distance(found, expected) / expected.abs().max().item<double>());
  }
  return most;
}

const std::vector<std::string> kDense{"arch/llama", "arch/llama31", "arch/mistral", "arch/qwen2",
                                      "arch/qwen3"};
const std::vector<std::string> kQuantized{
    "vectors/tiny_llama_bnb_nf4_dq",        "vectors/tiny_llama_bnb_fp4",
    "vectors/tiny_llama_bnb_int8",          "vectors/tiny_llama_gptq4_v1",
    "vectors/tiny_llama_gptq4_v2_desc_act", "vectors/tiny_llama_gptq3_v1",
    "vectors/tiny_llama_gptq8_v1",          "vectors/tiny_llama_awq4_gemm"};

}  // namespace

TEST_CASE("the decoding loop gives the logits of forward, in pieces of any length") {
  const c10::InferenceMode guard;
  for (const auto* folders : {&kDense, &kQuantized})
    for (const auto& folder : *folders) {
      CAPTURE(folder);
      // LLM.int8 takes columns out by all rows of a call, so pieces are no whole.
      if (folder == "vectors/tiny_llama_bnb_int8") continue;
      const auto loaded = load(folder, at::kFloat);
      const double found =
          difference(*loaded.model, some_ids(*loaded.model, 60), {7, 1, 1, 20, 1, 17, 13});
      MESSAGE(folder << ", float32: largest difference " << found);
      CHECK(found <= 2e-5);
    }
}

TEST_CASE("in bfloat16 and float16 the decoding loop rounds where forward does") {
  const c10::InferenceMode guard;
  for (const auto* folders : {&kDense, &kQuantized})
    for (const auto& folder : *folders)
      for (const auto dtype : {at::kBFloat16, at::kHalf}) {
        CAPTURE(folder);
        const auto loaded = load(folder, dtype);
        const double found =
            difference(*loaded.model, some_ids(*loaded.model, 40), {16, 1, 1, 21, 1});
        MESSAGE(folder << ", " << std::string(c10::toString(dtype)) << ": largest difference " << found);
        CHECK(found <= (dtype == at::kHalf ? 4e-3 : 3e-2));
      }
}

TEST_CASE("prompts of several blocks go through the decoding loop as through forward") {
  const c10::InferenceMode guard;
  for (const std::string folder :
       {"arch/llama", "arch/mistral", "vectors/tiny_llama_bnb_nf4_dq", "vectors/tiny_llama_gptq4_v1"}) {
    CAPTURE(folder);
    const auto loaded = load(folder, at::kFloat);
    CHECK(difference(*loaded.model, some_ids(*loaded.model, 420), {250, 1, 169}) <= 2e-5);
  }
}

TEST_CASE("the decoding loop gives the same bits for any number of threads") {
  const c10::InferenceMode guard;
  for (const auto& folder : kQuantized) {
    CAPTURE(folder);
    const auto loaded = load(folder, at::kBFloat16);
    const auto ids = some_ids(*loaded.model, 200);
    std::vector<at::Tensor> first;
    for (const int threads : {1, 2, 3}) {
      const TorchThreads limit(threads);
      const auto loop = DecodingLoop::of(*loaded.model);
      REQUIRE(loop);
      std::vector<at::Tensor> all{tensor(loop->next(std::span(ids).subspan(0, 150)))};
      for (std::size_t i = 150; i < 160; ++i)
        all.push_back(tensor(loop->next(std::span(ids).subspan(i, 1))));
      all.push_back(tensor(loop->next(std::span(ids).subspan(160, 10))));
      if (first.empty()) first = all;
      for (std::size_t i = 0; i < all.size(); ++i) CHECK(at::equal(all[i], first[i]));
    }
  }
}

TEST_CASE("text generated by the loop is that of Transformers") {
  const c10::InferenceMode guard;
  for (const auto& folder : kDense) {
    CAPTURE(folder);
    const auto loaded = load(folder, at::kFloat);
    const auto file = golden(folder) / "expected.safetensors";
    const auto expected = read_tensor(file, "generated_ids").view({-1}).contiguous();
    const auto prompt = read_tensor(file, "input_ids")[0].narrow(0, 0, 8).contiguous();
    GenerateOptions options;
    options.max_new_tokens = expected.numel() - 8;
    const auto found =
        generate(*loaded.model, std::span(prompt.const_data_ptr<std::int64_t>(), 8), options);
    CHECK(std::equal(found.ids.begin(), found.ids.end(),
                     expected.const_data_ptr<std::int64_t>() + 8));
  }
}

TEST_CASE("nothing is chosen, and no text scored, by logits that are not finite") {
  for (const std::string name : {"arch/llama", "arch/gemma2"})
    for (const double temperature : {0.0, 1.0}) {
      const auto loaded = load(name, at::kFloat);
      const auto body = std::dynamic_pointer_cast<nn::Block>(loaded.model->child("model"));
      const auto norm = std::dynamic_pointer_cast<nn::Block>(body->child("norm"));
      norm->set_tensor("weight", at::full_like(norm->own_tensors().front().second, NAN));
      GenerateOptions options;
      options.temperature = temperature;
      const std::vector<std::int64_t> prompt{1, 2, 3};
      CHECK_THROWS_WITH_AS(generate(*loaded.model, prompt, options),
                           doctest::Contains("logits are not finite"), Error);
      CHECK_THROWS_WITH_AS(perplexity(*loaded.model, prompt, 3, {}),
                           doctest::Contains("logits are not finite"), Error);
    }
}

TEST_CASE("architectures that are not of Llama's kind have no decoding loop") {
  for (const std::string name : {"gemma2", "gpt2", "mixtral", "bert", "phi3"}) {
    CAPTURE(name);
    CHECK(DecodingLoop::of(*load("arch/" + name, at::kFloat).model) == nullptr);
  }
}

TEST_CASE("a norm or a dtype that the loop does not know leaves the model to forward") {
  struct OtherNorm : nn::Unary {
    OtherNorm() : Unary("OtherNorm") {}
    at::Tensor forward(const at::Tensor& x) override { return x; }
  };
  const auto loaded = load("arch/llama", at::kFloat);
  REQUIRE(DecodingLoop::of(*loaded.model));
  const auto body = std::dynamic_pointer_cast<nn::Block>(loaded.model->child("model"));
  const auto norm = std::dynamic_pointer_cast<nn::RmsNorm>(body->child("norm"));
  norm->set_tensor("weight", norm->weight.to(at::kBFloat16));
  CHECK(DecodingLoop::of(*loaded.model) == nullptr);
  body->replace_child("norm", std::make_shared<OtherNorm>());
  CHECK(DecodingLoop::of(*loaded.model) == nullptr);
}

}  // namespace graft::tests
