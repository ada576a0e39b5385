#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <cmath>

#include "../host/edited_folder.h"
#include "graft/comparison.h"
#include "graft/evaluate.h"
#include "graft/module_graph.h"
#include "plugins/torch_threads.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

const fs::path kGolden = GRAFT_TEST_DATA;
const fs::path kLlama = kGolden / "vectors/tiny_llama_dense_fp16";

TestHost& host() {
  static TestHost instance;
  return instance;
}

std::shared_ptr<Model> model_of(const fs::path& folder, const char* settings = nullptr) {
  LoadOptions options;
  options.dtype = at::kFloat;
  if (settings) options.quantization_config = parse_json(settings);
  return host().host->load(folder, options).model;
}

constexpr const char* kNf4 = R"({"quant_method": "bitsandbytes", "load_in_4bit": true,
                                 "bnb_4bit_quant_type": "nf4"})";

at::Tensor windows(std::int64_t number, std::int64_t length) {
  at::manual_seed(3);
  return at::randint(64, {number, length}, at::kLong);
}

std::vector<std::int64_t> flat(const at::Tensor& ids) {
  return {ids.const_data_ptr<std::int64_t>(), ids.const_data_ptr<std::int64_t>() + ids.numel()};
}

}  // namespace

TEST_CASE("a model is no distance from a copy of itself") {
  const auto found = compare(model_of(kLlama), model_of(kLlama), windows(3, 20));
  CHECK(found.windows == 3);
  CHECK(found.context == 20);
  CHECK(found.tokens == 3 * 19);
  CHECK(found.not_finite == 0);
  CHECK(found.kl_mean == 0);
  CHECK(found.kl_max == 0);
  CHECK(found.top1_agreement == 1);
  CHECK(found.perplexity == found.perplexity_reference);
  CHECK(found.layers == std::vector<double>{0, 0});
}

TEST_CASE("a comparison's figures are those of both models' logits, computed in another way") {
  const auto dense = model_of(kLlama), quantized = model_of(kLlama, kNf4);
  const auto ids = windows(4, 24);
  const auto found = compare(dense, quantized, ids);
  const c10::InferenceMode guard;
  Batch batch;
  batch.input_ids = ids;
  const auto p = dense->forward(batch).narrow(1, 0, 23).to(at::kDouble).softmax(-1).view({-1, 64});
  const auto q =
      quantized->forward(batch).narrow(1, 0, 23).to(at::kDouble).softmax(-1).view({-1, 64});
  const auto kl = (p * (p / q).log()).sum(-1);
  CHECK(found.kl_mean > 0);
  CHECK(found.kl_mean == doctest::Approx(kl.mean().item<double>()).epsilon(1e-4));
  CHECK(found.kl_max == doctest::Approx(kl.max().item<double>()).epsilon(1e-4));
  const auto sorted = std::get<0>(kl.sort());
  CHECK(found.kl_p99 == doctest::Approx(sorted[91].item<double>()).epsilon(1e-4));  // of 92
  CHECK(found.top1_agreement ==
        doctest::Approx(p.argmax(-1).eq(q.argmax(-1)).to(at::kDouble).mean().item<double>()));
  CHECK(found.perplexity_reference ==
        doctest::Approx(perplexity(*dense, flat(ids), 24).value).epsilon(1e-6));
  CHECK(found.perplexity ==
        doctest::Approx(perplexity(*quantized, flat(ids), 24).value).epsilon(1e-6));
  const Value value = to_value(found);
  CHECK(value.at("kl_mean").as_double() == found.kl_mean);
  CHECK(value.at("layers").as_array().size() == 2);
}

TEST_CASE("the error of a layer is that of the hidden states behind it") {
  // Only the second layer differs, so what is behind the first is the same.
  const EditedFolder other("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors& tensors) {
    auto& down = tensors.at("model.layers.1.mlp.down_proj.weight");
    for (std::size_t i = 0; i < down.count(); ++i) down.data<std::uint16_t>()[i] = 0;
  });
  const auto found = compare(model_of(kLlama), model_of(other.path()), windows(2, 16));
  REQUIRE(found.layers.size() == 2);
  CHECK(found.layers[0] == 0);
  CHECK(found.layers[1] > 1e-6);
}

TEST_CASE("layers of every decoder are watched, and the models are as before afterwards") {
  std::size_t decoders = 0;
  for (const auto& entry : fs::directory_iterator(kGolden / "arch")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    CAPTURE(entry.path().string());
    const auto a = model_of(entry.path()), b = model_of(entry.path());
    if (a->output() != Model::Output::logits) continue;
    ++decoders;
    const auto vocabulary = a->text_config().get_int("vocab_size", 0);
    at::manual_seed(5);
    const auto ids = at::randint(vocabulary, {2, 9}, at::kLong);
    const auto names = [&] {
      std::string out;
      for (const auto& module : named_modules(a))
        out += module.path + " " + typeid(*module.module).name() + "\n";
      return out;
    };
    const std::string before = names();
    const auto found = compare(a, b, ids);
    CHECK(found.layers == std::vector<double>(a->cache_layers(), 0.0));
    CHECK(found.kl_max == 0);
    CHECK(names() == before);
  }
  CHECK(decoders > 10);
}

TEST_CASE("a comparison gives the same bits for any number of threads") {
  const auto ids = windows(3, 40);
  std::string first;
  for (const int threads : {1, 2, 3}) {
    const TorchThreads limit(threads);
    const auto found = to_json(to_value(compare(model_of(kLlama), model_of(kLlama, kNf4), ids)));
    if (first.empty()) first = found;
    CHECK(found == first);
    CHECK(at::get_num_threads() == threads);
  }
}

TEST_CASE("what cannot be compared is refused, and a comparison can be interrupted") {
  const auto dense = model_of(kLlama), other = model_of(kLlama);
  CHECK(contains(message_of([&] { compare(dense, dense, windows(1, 4)); }),
                 "a model is compared with itself"));
  CHECK(contains(message_of([&] { compare(dense, other, windows(1, 1)); }), "T at least 2"));
  CHECK(contains(message_of([&] { compare(dense, other, at::full({1, 3}, 64, at::kLong)); }),
                 "not in the model's vocabulary"));
  const auto bert = model_of(kGolden / "arch/bert");
  CHECK(contains(message_of([&] { compare(dense, bert, windows(1, 4)); }),
                 "a BertModel has no logits that could be compared"));
  const auto gpt2 = model_of(kGolden / "arch/gpt2");
  if (gpt2->text_config().get_int("vocab_size", 0) != 64)
    CHECK(contains(message_of([&] { compare(dense, gpt2, windows(1, 4)); }),
                   "the models have different vocabularies: expected 64 tokens, as the reference"));
  Context context;
  context.progress = [](std::string_view, std::uint64_t done, std::uint64_t) { return done < 1; };
  const auto error = thrown_by([&] { compare(dense, other, windows(2, 4), context); });
  CHECK((error.kind() == ErrorKind::interrupted));
  CHECK(compare(dense, other, windows(1, 4)).kl_mean == 0);
}

TEST_CASE("windows of a text do not overlap, and a last one that is not full is left out") {
  std::vector<std::int64_t> ids(11);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i);
  CHECK(evaluation_windows(ids, 4).equal(at::arange(8, at::kLong).view({2, 4})));
  CHECK(evaluation_windows(ids, 512).sizes() == at::IntArrayRef{1, 11});
  CHECK(contains(message_of([&] { evaluation_windows(ids, 1); }), "at least 2 tokens"));
  CHECK(contains(message_of([&] { evaluation_windows(std::span(ids).first(1), 4); }),
                 "too short to be scored"));
}
