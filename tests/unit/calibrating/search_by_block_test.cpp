#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <doctest/doctest.h>

#include <map>

#include "calibrated_model.h"
#include "calibrating/calibrate.h"
#include "graft/error.h"
#include "plugins/torch_threads.h"

using namespace graft;
using namespace graft::test;

namespace {

constexpr const char* kAwq = R"({"quant_method": "awq", "bits": 4, "group_size": 32})";

/// Asks what groups are judged by, and leaves the work to the method's own quantizer.
struct Asking : Quantizer {
  explicit Asking(const Quantizer& own) : own_(own) {}
  int recognises(const Value& settings) const override { return own_.recognises(settings); }
  QuantConfigPtr parse(const Value& settings) const override { return own_.parse(settings); }
  Value describe(const QuantConfig& config) const override { return own_.describe(config); }
  std::vector<OptionSpec> options() const override { return own_.options(); }
  bool pre_quantized_by_default() const override { return own_.pre_quantized_by_default(); }
  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override {
    return own_.supports(spec, config);
  }
  std::string replacement_class(const ModuleSpec& spec, const QuantConfig& config) const override {
    return own_.replacement_class(spec, config);
  }
  std::vector<TensorSpec> tensors(const ModuleSpec& spec,
                                  const QuantConfig& config) const override {
    return own_.tensors(spec, config);
  }
  std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                   const QuantConfig& config) const override {
    return own_.build(spec, config);
  }
  at::Tensor dequantize(const nn::Block& module) const override { return own_.dequantize(module); }
  GroupResult quantize(const ModuleGroup& group, const Context& context) const override {
    return own_.quantize(group, context);
  }
  at::Tensor input_scales(const ModuleGroup& group, const Context&) const override {
    const auto& path = group.members.front().spec.path;
    judged[path] = group.block_error != nullptr;
    if (!group.block_error) return {};
    std::vector<at::Tensor> weights;
    for (const auto& member : group.members) weights.push_back(member.dense.at("weight").clone());
    CHECK(group.block_error(weights) == 0);
    weights[0].mul_(1.01);
    const double one = group.block_error(weights);
    weights[0].mul_(1.01);
    CHECK(one > 0);
    CHECK(group.block_error(weights) > one);
    return {};
  }

  const Quantizer& own_;
  mutable std::map<std::string, bool> judged;
};

std::map<std::string, bool> judged_by_block(const fs::path& folder, bool search_by_block) {
  LoadOptions options;
  options.dtype = at::kFloat;
  const auto loaded = host().host->load(folder, options);
  options.quantization_config = parse_json(kAwq);
  options.calibration = random_ids(folder, 4, 48);
  Plan plan = host().host->plan(Checkpoint::open(folder), options);
  std::unique_ptr<Asking> asking;
  for (auto& entry : plan.entries) {
    if (entry.action != Action::quantize) continue;
    if (!asking) asking = std::make_unique<Asking>(*entry.quantizer);
    entry.quantizer = asking.get();
  }
  Calibrating how;
  how.search_by_block = search_by_block;
  quantize_calibrated(
      loaded.model, plan, how, 2,
      [&](std::int64_t i, const Batch::AroundLayer& around) {
        const c10::NoGradGuard guard;
        Batch batch;
        batch.input_ids = options.calibration.narrow(0, 2 * i, 2);
        batch.around_layer = around;
        loaded.model->forward(batch);
      },
      {}, {});
  return asking->judged;
}

}  // namespace

TEST_CASE("groups before the last module of attention and MLP are judged by what that gives") {
  const auto judged = judged_by_block(kLlama, true);
  REQUIRE(judged.size() >= 6);
  for (const auto& [path, by_block] : judged) {
    CAPTURE(path);
    CHECK(by_block == (path.ends_with("q_proj") || path.ends_with("gate_proj")));
  }
  for (const auto& [path, by_block] : judged_by_block(kLlama, false)) CHECK(!by_block);
}

TEST_CASE("a model that does not show its layers is neither searched by blocks nor polished") {
  LoadOptions options;
  options.quantization_config = parse_json(kAwq);
  options.dtype = at::kFloat;
  options.calibration = random_ids(kLlama, 4, 48);
  const Plan plan = host().host->plan(Checkpoint::open(kLlama), options);
  for (const bool polishes : {false, true}) {
    LoadOptions dense;
    dense.dtype = at::kFloat;
    const auto loaded = host().host->load(kLlama, dense);
    const auto before = logits(loaded, options.calibration);
    Calibrating how;
    how.polish_steps = polishes ? 3 : 0;
    how.search_by_block = !polishes;
    const std::string why = message_of([&] {
      quantize_calibrated(
          loaded.model, plan, how, 1,
          [&](std::int64_t, const auto&) { logits(loaded, options.calibration); }, {}, {});
    });
    CHECK(why.find("does not show its layers") != std::string::npos);
    CHECK(logits(loaded, options.calibration).equal(before));
  }
}

TEST_CASE("scales searched by the block make another model, the same for any number of threads") {
  const EditedFolder strong("vectors/tiny_llama_dense_fp16", strengthen_a_channel);
  const auto made = [&](const fs::path& folder, bool by_block, int threads) {
    const TorchThreads some(threads);
    LoadOptions options;
    options.quantization_config = parse_json(kAwq);
    options.dtype = at::kFloat;
    options.calibration = random_ids(folder, 12, 200);
    options.search_by_block = by_block;
    const TemporaryFolder out;
    host().host->save(host().host->load(folder, options), out.path() / "m");
    return read_file(out.path() / "m/model.safetensors");
  };
  for (const auto& folder : {strong.path(), kMoe}) {
    CAPTURE(folder.string());
    const auto by_block = made(folder, true, 1);
    CHECK(by_block == made(folder, true, 3));
    CHECK(by_block != made(folder, false, 1));
  }
}

TEST_CASE("a search by blocks is refused where nothing is searched") {
  const auto refused = [&](const char* settings, bool with_text) {
    LoadOptions options;
    options.quantization_config = parse_json(settings);
    if (with_text) options.calibration = random_ids(kLlama, 4, 48);
    options.search_by_block = true;
    return std::string(thrown_by([&] { host().host->load(kLlama, options); }).what());
  };
  const char *gptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})",
             *nf4 = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";
  CHECK(refused(gptq, true).find("searches no scales of inputs") != std::string::npos);
  CHECK(refused(nf4, false).find("nothing is calibrated") != std::string::npos);
}
