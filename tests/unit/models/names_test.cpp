#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <fstream>
#include <functional>

#include "folder.h"
#include "graft/host.h"
#include "graft/module_graph.h"

namespace graft::tests {
namespace {

/// A copy of a golden folder whose tensors have other names (an empty one: left out), with one more
/// tensor when `extra` is not empty.
void rename(const std::string& from, const std::filesystem::path& to,
            const std::function<std::string(std::string)>& name_of, const std::string& extra = "") {
  std::filesystem::create_directory(to);
  std::filesystem::copy_file(golden(from) / "config.json", to / "config.json");
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    tensors.push_back({name, dtype_of(tensor.scalar_type()), tensor.sizes().vec(), [tensor] {
                         return std::shared_ptr<const void>(tensor.const_data_ptr(),
                                                            [tensor](const void*) {});
                       }});
  };
  const auto source = Checkpoint::open(golden(from));
  for (const auto& info : source.tensors())
    if (const auto name = name_of(info.name); !name.empty())
      add(name, read_tensor(golden(from) / "model.safetensors", info.name));
  if (!extra.empty()) add(extra, at::ones({3, 2}));
  write_tensor_file(to / "model.safetensors", std::move(tensors));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  if (const auto at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

}  // namespace

TEST_CASE("headless and wrapped checkpoints are the same model") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  const auto check = [&](const std::string& from, const std::string& to,
                         const std::function<std::string(std::string)>& name_of) {
    CAPTURE(to);
    rename(from, out.path() / to, name_of);
    const auto loaded = host.load(out.path() / to);
    CHECK(loaded.plan.unexpected.empty());
    const auto ids = read_tensor(golden(from) / "expected.safetensors", "input_ids");
    const auto expected = read_tensor(golden(from) / "expected.safetensors", "logits");
    CHECK(distance(forward(*loaded.model, ids), expected) <= 2e-5);
    // What is made of it keeps the names it came with, companions included.
    LoadOptions options;
    options.quantization_config =
        parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})");
    const auto made = host.load(out.path() / to, options);
    host.save(made, out.path() / (to + "-nf4"));
    const auto written = Checkpoint::open(out.path() / (to + "-nf4"));
    for (const auto& info : loaded.checkpoint.tensors()) CHECK(written.find(info.name));
    const auto again = host.load(out.path() / (to + "-nf4"));
    CHECK(again.plan.unexpected.empty());
    CHECK(at::equal(forward(*again.model, ids), forward(*made.model, ids)));
  };
  check("arch/qwen2", "headless", [](const auto& name) { return replaced(name, "model.", ""); });
  check("arch/mistral", "language-model",
        [](const auto& name) { return "language_model." + name; });
  check("arch/gemma3_text", "inside-model",
        [](const auto& name) { return replaced(name, "model.", "model.language_model."); });
  check("arch/gpt2", "headless-gpt2",
        [](const auto& name) { return replaced(name, "transformer.", ""); });
  check("arch/opt", "headless-opt", [](const auto& name) { return replaced(name, "model.", ""); });
  check("arch/mixtral", "mixtral-of-gptqmodel", [](std::string name) {
    name = replaced(std::move(name), ".block_sparse_moe.", ".mlp.");
    name = replaced(std::move(name), ".w1.", ".gate_proj.");
    name = replaced(std::move(name), ".w3.", ".up_proj.");
    return replaced(std::move(name), ".w2.", ".down_proj.");
  });
}

TEST_CASE("norms of old BERT checkpoints have a gamma and a beta") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  rename("arch/bert", out.path() / "old", [](const auto& name) {
    return replaced(replaced(name, "LayerNorm.weight", "LayerNorm.gamma"), "LayerNorm.bias",
                    "LayerNorm.beta");
  });
  const auto loaded = host.load(out.path() / "old");
  const auto file = golden("arch/bert") / "expected.safetensors";
  CHECK(distance(forward(*loaded.model, read_tensor(file, "input_ids")),
                 read_tensor(file, "last_hidden_state")) <= 2e-5);
}

TEST_CASE("a skip list may spell names as the checkpoint does") {
  const Host host;
  for (const std::string name : {"model.layers.0.block_sparse_moe.experts.1.w2",
                                 "model.layers.0.mlp.experts.1.down_proj"}) {
    CAPTURE(name);
    LoadOptions options;
    options.quantization_config = parse_json(
        R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "llm_int8_skip_modules": [")" +
        name + "\"]}");
    const Plan plan = host.plan(Checkpoint::open(golden("arch/mixtral")), options);
    CHECK(plan.unmatched.empty());
    std::vector<std::string> kept;
    for (const auto& entry : plan.entries)
      if (entry.reason == "skip list: '" + name + "'") kept.push_back(entry.spec.path);
    CHECK(kept == std::vector<std::string>{"model.layers.0.mlp.experts.1.down_proj"});
  }
}

// What Transformers 5 writes when it quantizes such a model on the fly: it does not see experts.
TEST_CASE("experts in one piece in a quantized checkpoint stay dense, in one piece") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  for (const std::string arch : {"arch/llama4_text", "arch/gpt_oss"}) {
    CAPTURE(arch);
    LoadOptions options;
    options.quantization_config =
        parse_json(R"({"quant_method": "bitsandbytes", "load_in_8bit": true})");
    const auto made = host.load(golden(arch), options);
    const auto folder = out.path() / golden(arch).filename();
    host.save(made, folder);
    const auto saved = Checkpoint::open(folder);
    std::vector<TensorToWrite> tensors;
    for (const auto* checkpoint : {&saved, &made.checkpoint})
      for (const auto& info : checkpoint->tensors()) {
        const bool in_one_piece = info.name.find("experts.gate_up") != std::string::npos ||
                                  info.name.find("experts.down") != std::string::npos;
        const bool expert = info.name.find(".experts.") != std::string::npos;
        if (checkpoint == &saved ? expert : !in_one_piece) continue;
        const auto tensor = read_tensor(checkpoint->folder() / "model.safetensors", info.name);
        tensors.push_back({info.name, info.dtype, info.shape, [tensor] {
                             return std::shared_ptr<const void>(tensor.const_data_ptr(),
                                                                [tensor](const void*) {});
                           }});
      }
    write_tensor_file(folder / "model.safetensors", std::move(tensors));
    const auto loaded = host.load(folder);
    CHECK(loaded.plan.unexpected.empty());
    CHECK(loaded.plan.count(Action::restructure) == 0);
    CHECK(loaded.plan.count(Action::quantize) > 0);
    CHECK(loaded.plan.bytes_taken() == loaded.checkpoint.total_bytes());
    const auto ids = read_tensor(golden(arch) / "expected.safetensors", "input_ids");
    // The dense model with the quantized layers of this one: everything else is equal.
    const auto reference = host.load(golden(arch));
    for (const auto& [path, module] : named_modules(loaded.model))
      if (class_name_of(*module) == "Linear8bitLt") replace_at(reference.model, path, module);
    CHECK(distance(forward(*loaded.model, ids), forward(*reference.model, ids)) <= 1e-6);
  }
}

TEST_CASE("towers are listed as not loaded and written again") {
  const Host host;
  const TemporaryFolder out;
  rename(
      "arch/mistral", out.path() / "with-tower",
      [](const auto& name) { return "language_model." + name; }, "vision_tower.layers.0.weight");
  const auto loaded = host.load(out.path() / "with-tower");
  CHECK(loaded.plan.unexpected.empty());
  REQUIRE(loaded.plan.unloaded.size() == 1);
  CHECK(loaded.plan.unloaded.front().source == "vision_tower.layers.0.weight");
  host.save(loaded, out.path() / "again");
  CHECK(at::equal(
      read_tensor(out.path() / "again" / "model.safetensors", "vision_tower.layers.0.weight"),
      at::ones({3, 2})));
}

TEST_CASE("a missing expert and one of another shape are named") {
  const Host host;
  const TemporaryFolder out;
  rename("arch/mixtral", out.path() / "missing", [](const auto& name) {
    return name == "model.layers.1.block_sparse_moe.experts.2.w2.weight" ? "" : name;
  });
  CHECK_THROWS_WITH_AS(host.load(out.path() / "missing"),
                       doctest::Contains("model.layers.1.mlp.experts.2.down_proj.weight"), Error);
  rename("arch/mixtral", out.path() / "swapped", [](const auto& name) {
    if (name == "model.layers.1.block_sparse_moe.experts.2.w2.weight")
      return std::string("model.layers.1.block_sparse_moe.experts.2.w1.weight");
    if (name == "model.layers.1.block_sparse_moe.experts.2.w1.weight")
      return std::string("model.layers.1.block_sparse_moe.experts.2.w2.weight");
    return name;
  });
  CHECK_THROWS_WITH_AS(host.load(out.path() / "swapped"), doctest::Contains("do not fit"), Error);
}

TEST_CASE("two tensors for one name of the model are not silently one") {
  const Host host;
  const TemporaryFolder out;
  rename(
      "arch/mistral", out.path() / "twice", [](const auto& name) { return name; },
      "language_model.lm_head.weight");
  const auto loaded = host.load(out.path() / "twice");
  CHECK(loaded.plan.unexpected.size() == 1);
}

}  // namespace graft::tests
