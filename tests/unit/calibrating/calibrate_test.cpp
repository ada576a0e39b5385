#include "calibrating/calibrate.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "calibrated_model.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"
#include "plugins/torch_threads.h"

using namespace graft;
using namespace graft::test;

namespace {

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

}  // namespace

TEST_CASE("zero points of 3 bits that end inside a word are the same in both formats of GPTQ") {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "gptq", "bits": 3, "group_size": 32})");
  options.calibration = random_ids(kLlama, 1, 8);
  const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
  const auto entry = std::find_if(plan.entries.begin(), plan.entries.end(), [](const auto& one) {
    return one.action == Action::quantize;
  });
  REQUIRE(entry != plan.entries.end());
  const Quantizer& quantizer = *entry->quantizer;
  ModuleSpec spec = entry->spec;
  spec.in_features = 96;
  spec.out_features = 16;  // 48 bits for each of three groups
  spec.bias = false;
  at::manual_seed(11);
  const auto weight = at::randn({16, 96});
  std::vector<at::Tensor> made;
  for (const char* format : {"gptq", "gptq_v2"}) {
    CAPTURE(format);
    options.quantization_config.set("checkpoint_format", format);
    const auto config = quantizer.parse(options.quantization_config);
    ModuleGroup group;
    group.inputs = {at::eye(96), 96};
    group.members.push_back({spec, config, Tensors{{"weight", weight}}});
    const auto module = quantizer.quantize(group, {}).modules.at(0);
    made.push_back(quantizer.dequantize(*module));
    CHECK((made.back() - weight).norm().item<double>() < 0.3 * weight.norm().item<double>());
    const auto again = quantizer.build(spec, *config);
    quantizer.fill(*again, *config, quantizer.save(*module, *config));
    CHECK(quantizer.dequantize(*again).equal(made.back()));
    CHECK(quantizer.save(*again, *config).at("qzeros").equal(
        quantizer.save(*module, *config).at("qzeros")));
  }
  CHECK(made[0].equal(made[1]));
}

TEST_CASE("a calibrated model is saved, and loads again as the same model") {
  const auto ids = random_ids(kLlama, 2, 20);
  LoadOptions dense;
  dense.dtype = at::kFloat;
  const auto reference = logits(host().host->load(kLlama, dense), ids);
  for (const char* settings : kSettings) {
    CAPTURE(settings);
    const auto loaded = calibrated(kLlama, settings);
    const auto here = logits(loaded, ids);
    CHECK((here - reference).norm().item<double>() < 0.35 * reference.norm().item<double>());
    const auto reloaded = saved_and_loaded(loaded);
    CHECK(reloaded.plan.pre_quantized);
    CHECK(logits(reloaded, ids).equal(here));
  }
}

TEST_CASE("each group of modules with one input is reported once, with what it lost") {
  const auto loaded = calibrated(kLlama, kSettings[0]);
  const auto layers =
      static_cast<std::size_t>(Checkpoint::open(kLlama).config().get_int("num_hidden_layers", 0));
  REQUIRE(loaded.calibration.size() == 4 * layers);
  std::set<std::string> seen;
  for (const auto& group : loaded.calibration) {
    CHECK(group.tokens == 4 * 48);
    CHECK(group.relative_error > 0);
    CHECK(group.relative_error < 0.1);
    CHECK(group.fallback.empty());
    for (const auto& path : group.modules) CHECK(seen.insert(path).second);
  }
  CHECK(seen.size() == loaded.plan.count(Action::quantize));
  CHECK(loaded.calibration.front().modules.size() == 3);
  const Value value = to_value(loaded.calibration);
  CHECK(value.at("groups").as_array().front().at("tokens").as_int() == 4 * 48);
}

TEST_CASE("calibration loses less than rounding to nearest on the text it saw") {
  const auto ids = random_ids(kLlama, 4, 48);
  const auto loss = [&](const char* settings, bool with_text) {
    LoadOptions options;
    options.quantization_config = parse_json(settings);
    options.dtype = at::kFloat;
    if (with_text) options.calibration = ids;
    LoadOptions dense;
    dense.dtype = at::kFloat;
    const auto reference = logits(host().host->load(kLlama, dense), ids);
    return (logits(host().host->load(kLlama, options), ids) - reference).norm().item<double>();
  };
  CHECK(loss(kSettings[5], true) < 0.9 * loss(kSettings[5], false));
}

TEST_CASE("experts are calibrated with the tokens they get, and those without any are named") {
  const auto ids = random_ids(kMoe, 1, 1);
  const auto loaded = calibrated(kMoe, kSettings[0], ids);
  std::size_t without = 0, with = 0;
  for (const auto& group : loaded.calibration) {
    if (group.modules.front().find("experts") == std::string::npos) continue;
    if (group.tokens == 0) {
      ++without;
      CHECK(group.fallback == "no token of the calibration text reached it");
      CHECK(group.relative_error < 0);
    } else {
      ++with;
      CHECK(group.fallback.empty());
    }
  }
  CHECK(with > 0);
  CHECK(without > 0);
  CHECK(logits(loaded, ids).isfinite().all().item<bool>());
}

TEST_CASE("experts that are shown all tokens are calibrated with them, and route as before") {
  LoadOptions options;
  options.quantization_config =
      parse_json(R"({"quant_method": "gptq", "bits": 8, "group_size": 32})");
  options.dtype = at::kFloat;
  options.calibration = random_ids(kMoe, 2, 40);
  const auto routed = host().host->load(kMoe, options);
  options.all_experts = true;
  const auto shown = host().host->load(kMoe, options);
  REQUIRE(shown.calibration.size() == routed.calibration.size());
  for (std::size_t i = 0; i < shown.calibration.size(); ++i) {
    const GroupReport &one = shown.calibration[i], &other = routed.calibration[i];
    CAPTURE(one.modules.front());
    CHECK(one.tokens == 80);
    // With 8 bits inputs are as they were, unless rows went to other experts than before.
    if (one.modules.front().find("experts") == std::string::npos)
      CHECK(one.relative_error == doctest::Approx(other.relative_error).epsilon(0.02));
  }
  const auto dense_logits = [&] {
    LoadOptions dense;
    dense.dtype = at::kFloat;
    return logits(host().host->load(kMoe, dense), options.calibration);
  }();
  const auto distance = (logits(shown, options.calibration) - dense_logits).norm();
  CHECK(distance.item<double>() < 0.02 * dense_logits.norm().item<double>());
}

TEST_CASE("to show experts all tokens is refused where there are none, and without text") {
  LoadOptions options;
  options.quantization_config = parse_json(kSettings[0]);
  options.all_experts = true;
  options.calibration = random_ids(kLlama, 1, 12);
  CHECK(contains(message_of([&] { host().host->load(kLlama, options); }),
                 "--all-experts: no experts of this model are modules of their own"));
  options.quantization_config = parse_json(kSettings[5]);
  options.calibration = at::Tensor();
  CHECK(contains(message_of([&] { host().host->load(kMoe, options); }),
                 "--all-experts: there are no experts to calibrate: nothing is calibrated"));
}

TEST_CASE("the same text gives the same bytes for any number of threads") {
  for (const char* settings : {kSettings[0], kSettings[4], kSettings[6]}) {
    CAPTURE(settings);
    const TemporaryFolder out;
    for (const int threads : {1, 2}) {
      const TorchThreads limit(threads);
      host().host->save(calibrated(kLlama, settings), out.path() / std::to_string(threads));
    }
    CHECK(bytes_of(out.path() / "1/model.safetensors") ==
          bytes_of(out.path() / "2/model.safetensors"));
  }
}

TEST_CASE("every architecture can be calibrated, saved, and loaded again as the same model") {
  for (const auto& entry : fs::directory_iterator(kGolden / "arch")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    for (std::string settings : {R"({"quant_method": "gptq", "bits": 4, "group_size": 16})",
                                 R"({"quant_method": "awq", "bits": 4, "group_size": 16})"}) {
      if (entry.path().filename() == "deepseek_v3")  // 24 inputs of q_b_proj are no whole groups
        settings.replace(settings.rfind("16"), 2, "-1");
      CAPTURE(entry.path().string());
      CAPTURE(settings);
      const auto loaded = calibrated(entry.path(), settings, random_ids(entry.path(), 2, 8));
      CHECK(loaded.plan.count(Action::quantize) > 0);
      std::size_t reached = 0;
      for (const auto& group : loaded.calibration) reached += group.tokens > 0;
      CHECK(reached > 0);
      const auto ids = random_ids(entry.path(), 1, 8);
      const auto here = logits(loaded, ids);
      CHECK(here.isfinite().all().item<bool>());
      const auto reloaded = saved_and_loaded(loaded);
      CHECK(reloaded.plan.count(Action::quantize) == loaded.plan.count(Action::quantize));
      CHECK(logits(reloaded, ids).equal(here));
    }
  }
}

TEST_CASE("scales that move into a norm leave the model's function as it was") {
  at::manual_seed(1);
  const auto x = at::randn({6, 32});
  const auto scales = at::rand({32}) + 0.5;
  const auto check = [&](nn::Unary& norm) {
    const auto before = norm.forward(x);
    const auto divided = norm.divide_output(scales);
    REQUIRE(divided.defined());
    CHECK(at::allclose(norm.forward(x) * divided, before, 1e-5, 1e-6));
  };
  nn::RmsNorm rms("LlamaRMSNorm", 32, 1e-6, at::TensorOptions(at::kFloat));
  rms.set_tensor("weight", at::randn({32}));
  check(rms);
  nn::LayerNorm layer(32, 1e-6, at::TensorOptions(at::kFloat));
  layer.set_tensor("weight", at::randn({32}));
  layer.set_tensor("bias", at::randn({32}));
  check(layer);
  nn::Linear linear(32, 32, false, at::TensorOptions(at::kFloat));
  CHECK_FALSE(linear.divide_output(scales).defined());
}

TEST_CASE("scales that move into a linear of AWQ are in its scales, and in its file") {
  const auto loaded = calibrated(kLlama, kSettings[4]);
  const auto [parent, name] = get_module_from_name(loaded.model, "model.layers.1.mlp.up_proj");
  const auto up = std::dynamic_pointer_cast<nn::Unary>(*parent->named_children().find(name));
  REQUIRE(up);
  const c10::InferenceMode guard;
  at::manual_seed(5);
  const auto x = at::randn({3, Checkpoint::open(kLlama).config().get_int("hidden_size", 0)});
  const auto before = up->forward(x);
  CHECK_FALSE(up->divide_output(at::full({before.size(1)}, 1e-9F)).defined());  // beyond float16
  CHECK(up->forward(x).equal(before));
  const auto divided = up->divide_output(at::rand({before.size(1)}) + 0.5);
  REQUIRE(divided.defined());
  CHECK(at::allclose(up->forward(x) * divided, before, 1e-3,
                     1e-3 * before.abs().max().item<double>()));
  const TemporaryFolder out;
  host().host->save(loaded, out.path() / "m");
  const auto ids = random_ids(kLlama, 1, 12);
  LoadOptions again;
  again.dtype = at::kFloat;
  CHECK(logits(host().host->load(out.path() / "m", again), ids).equal(logits(loaded, ids)));
}

TEST_CASE("a model whose up_proj takes scales computes what it did, better than without") {
  // One channel between up_proj and down_proj is far stronger than the others, as in trained
  // models.
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", strengthen_a_channel);
  const auto ids = random_ids(folder.path(), 2, 20);
  LoadOptions options;
  options.dtype = at::kFloat;
  const auto dense = logits(host().host->load(folder.path(), options), ids);
  const auto loaded = calibrated(folder.path(), kSettings[4]);
  CHECK((logits(loaded, ids) - dense).norm().item<double>() < 0.2 * dense.norm().item<double>());
  // GPTQ, whose codes are rounded in the same way, moves no scales.
  const auto plain = calibrated(folder.path(), R"({"quant_method": "gptq", "bits": 4,
      "group_size": 32, "sym": false})");
  for (const std::size_t down : {3U, 7U}) {
    REQUIRE(loaded.calibration[down].modules.front().find("down_proj") != std::string::npos);
    CHECK(loaded.calibration[down].relative_error < plain.calibration[down].relative_error);
  }
}

TEST_CASE("what a norm divides by is what its rounded weight divides by") {
  nn::RmsNorm norm("LlamaRMSNorm", 8, 1e-6, at::TensorOptions(at::kBFloat16));
  norm.set_tensor("weight", at::ones({8}, at::kBFloat16));
  const auto divided = norm.divide_output(at::full({8}, 1.003F));
  CHECK(divided.equal(1 / norm.weight.to(at::kFloat)));
}

TEST_CASE("a method that needs calibration text says so") {
  LoadOptions options;
  options.quantization_config = parse_json(kSettings[0]);
  const auto error = thrown_by([&] { host().host->load(kLlama, options); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(), "the method 'gptq' needs calibration text"));
  CHECK(contains(error.what(), "--calibration FILE"));
}

TEST_CASE("the fast recipe loses most, and what each makes loads as the same model") {
  const auto ids = random_ids(kLlama, 2, 20);
  for (const char* settings : {kSettings[0], kSettings[4], kSettings[5]}) {
    CAPTURE(settings);
    std::vector<double> lost;
    for (const auto recipe : {Recipe::fast, Recipe::standard, Recipe::best}) {
      const auto loaded = calibrated(kLlama, settings, {}, recipe);
      lost.push_back(loaded.calibration.front().relative_error);
      CHECK(logits(saved_and_loaded(loaded), ids).equal(logits(loaded, ids)));
    }
    CHECK(lost[0] > lost[1]);
    CHECK(lost[0] > lost[2]);
  }
}

TEST_CASE("a recipe where nothing is calibrated, and one that there is not, are refused") {
  LoadOptions options;
  options.quantization_config = parse_json(kSettings[5]);
  options.recipe = Recipe::fast;
  const auto error = thrown_by([&] { host().host->load(kLlama, options); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(),
                 "--recipe: the recipe is of no use: nothing is calibrated: found fast"));
  for (const auto recipe : {Recipe::fast, Recipe::standard, Recipe::best})
    CHECK(parse_recipe(word_of(recipe)) == recipe);
  CHECK(contains(message_of([] { parse_recipe("slow"); }),
                 "--recipe: no such recipe: expected fast, default or best, found 'slow'"));
}

TEST_CASE(
    "a model in memory is calibrated step by step, and is as it was when that stops half-way") {
  LoadOptions options;
  options.dtype = at::kFloat;
  auto loaded = host().host->load(kLlama, options);
  const auto ids = random_ids(kLlama, 1, 12);
  const auto before = logits(loaded, ids);
  const auto run = [&] { logits(loaded, ids); };
  auto quantizer = ModelQuantizer::from_config(*host().host, parse_json(kSettings[0]));
  CHECK(contains(message_of([&] { quantizer.calibrate(loaded.model, {run}); }),
                 "call set_pre_quantized(false) when the model is dense"));
  quantizer.set_pre_quantized(false);
  CHECK(contains(message_of([&] { quantizer.postprocess_model(loaded.model); }),
                 "call calibrate, which runs the model over it"));
  int left = 5;
  Context context;
  context.progress = [&](std::string_view, std::uint64_t, std::uint64_t) { return left-- > 0; };
  const auto error = thrown_by([&] { quantizer.calibrate(loaded.model, {run}, context); });
  CHECK((error.kind() == ErrorKind::interrupted));
  CHECK(count(loaded.model, "QuantLinear") == 0);
  CHECK(logits(loaded, ids).equal(before));
  left = 1 << 20;
  std::string elsewhere;
  const auto in_a_thread = [&] {
    std::thread([&] { elsewhere = message_of(run); }).join();
    throw std::runtime_error("enough");
  };
  CHECK_THROWS_WITH(quantizer.calibrate(loaded.model, {in_a_thread}, context), "enough");
  CHECK(contains(elsewhere, "the model is called from another thread while it is calibrated"));
  CHECK(logits(loaded, ids).equal(before));
  const auto report = quantizer.calibrate(loaded.model, {run}, context);
  CHECK(report.size() == 8);
  CHECK(count(loaded.model, "QuantLinear") == quantizer.plan().count(Action::quantize));
  CHECK(contains(message_of([&] { quantizer.calibrate(loaded.model, {run}); }),
                 "the model is converted already"));
}

TEST_CASE("norms that took scales give them back when calibration stops half-way") {
  LoadOptions options;
  options.dtype = at::kFloat;
  auto loaded = host().host->load(kLlama, options);
  const auto ids = random_ids(kLlama, 4, 48);
  const auto before = logits(loaded, ids);
  auto quantizer = ModelQuantizer::from_config(*host().host, parse_json(kSettings[4]), false);
  std::size_t changed = 0;
  const auto norms = [&] {
    std::vector<at::Tensor> out;
    for (const auto& entry : loaded.model->named_parameters())
      if (entry.key().find("norm") != std::string::npos) out.push_back(entry.value());
    return out;
  };
  const auto first = norms();
  Context context;
  context.progress = [&](std::string_view, std::uint64_t done, std::uint64_t) {
    const auto now = norms();
    for (std::size_t i = 0; i < now.size(); ++i) changed += !now[i].equal(first[i]);
    return done < 7;
  };
  const auto error = thrown_by(
      [&] { quantizer.calibrate(loaded.model, {[&] { logits(loaded, ids); }}, context); });
  CHECK((error.kind() == ErrorKind::interrupted));
  CHECK(changed > 0);  // or the test would show nothing
  CHECK(logits(loaded, ids).equal(before));
}
