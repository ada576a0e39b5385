#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "folder.h"
#include "graft/generate.h"
#include "graft/host.h"
#include "graft/module_graph.h"

namespace graft::tests {
namespace {

std::string text_of(const std::filesystem::path& file) {
  std::ostringstream out;
  out << std::ifstream(file).rdbuf();
  return out.str();
}

/// A golden folder with some fields of its config set.
void with_fields(const std::string& arch, const Value& fields, const std::filesystem::path& to) {
  std::filesystem::create_directory(to);
  std::filesystem::copy_file(golden("arch/" + arch) / "model.safetensors",
                             to / "model.safetensors");
  Value config = Checkpoint::open(golden("arch/" + arch)).config();
  for (const auto& [key, value] : fields.as_object()) config.set(key, value);
  std::ofstream(to / "config.json") << to_json(config, 2);
}

}  // namespace

TEST_CASE("every rope scaling agrees with Transformers") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  for (const std::string name : {"linear", "dynamic", "yarn", "longrope_long", "longrope_short"}) {
    CAPTURE(name);
    Value fields = parse_json(text_of(golden("rope/" + name + ".json")));
    const std::string arch = fields.at("arch").as_string();
    fields.erase("arch");
    with_fields(arch, fields, out.path() / name);
    const auto loaded = host.load(out.path() / name);
    const auto ids =
        read_tensor(golden("arch/" + arch) / "expected.safetensors", "input_ids").narrow(0, 0, 1);
    const auto expected = read_tensor(golden("rope/" + name + ".safetensors"), "logits");
    const double difference = distance(forward(*loaded.model, ids), expected);
    MESSAGE(name << ": largest difference " << difference);
    CHECK(difference <= 2e-5);
  }
}

TEST_CASE("a long prompt has the positions of its whole length, and so has what is written on") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  const std::string kLong = R"({"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0,
      "partial_rotary_factor": 1.0, "short_factor": [1, 1, 1, 1, 1, 1, 1, 1],
      "long_factor": [9, 8, 7, 6, 5, 4, 3, 9]},
      "original_max_position_embeddings": 600, "max_position_embeddings": 4096})";
  const std::string kDynamic = R"({"rope_parameters": {"rope_type": "dynamic", "factor": 8.0,
      "rope_theta": 10000.0}, "max_position_embeddings": 600})";
  for (const auto& [arch, fields] :
       {std::pair<std::string, std::string>{"phi3", kLong}, {"llama", kDynamic}})
    for (const std::int64_t length : {700, 598}) {
      if (fields == kDynamic && length < 600) continue;  // keys stay as they were, as in Transformers
      CAPTURE(arch);
      CAPTURE(length);
      const auto folder = out.path() / std::to_string(length);
      std::filesystem::remove_all(folder);
      with_fields(arch, parse_json(fields), folder);
      const auto loaded = host.load(folder);
      for (const auto& [path, module] : named_modules(loaded.model))  // heads that look far
        if (path.ends_with("q_proj") || path.ends_with("k_proj") || path.ends_with("qkv_proj")) {
          auto& block = dynamic_cast<nn::Block&>(*module);
          block.set_tensor("weight", block.own_tensors().front().second * 4);
        }
      at::manual_seed(7);
      const auto text = at::randint(128, {1, length}, at::kLong);
      GenerateOptions options;
      options.max_new_tokens = fields == kDynamic ? 1 : 6;
      const auto found = generate(
          *loaded.model, {text.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(length)},
          options);
      auto all = text;
      for (const auto id : found.ids) {
        CHECK(id == forward(*loaded.model, all)[0][all.size(1) - 1].argmax().item<std::int64_t>());
        all = at::cat({all, at::full({1, 1}, id, at::kLong)}, 1);
      }
    }
}

TEST_CASE("fields that a config lacks are what the family's config class says, and null is none") {
  const c10::InferenceMode guard;
  const Host host;
  const TemporaryFolder out;
  const auto logits_of = [&](const std::string& name, const std::string& arch, Value config) {
    std::filesystem::create_directory(out.path() / name);
    std::filesystem::copy_file(golden("arch/" + arch) / "model.safetensors",
                               out.path() / name / "model.safetensors");
    std::ofstream(out.path() / name / "config.json") << to_json(config, 2);
    const auto loaded = host.load(out.path() / name);
    at::manual_seed(3);
    return forward(*loaded.model, at::randint(128, {1, 200}, at::kLong));
  };
  struct Row {
    const char *arch, *absent, *fields;
  };
  int i = 0;
  for (const Row& row : {
           Row{"gpt_oss", "sliding_window", R"({"sliding_window": 128})"},
           Row{"gpt_oss", "rope_parameters", R"({"rope_parameters": {"rope_type": "yarn",
               "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
               "original_max_position_embeddings": 4096, "rope_theta": 150000.0}})"},
           Row{"mixtral", "rope_parameters", R"({"rope_parameters": {"rope_theta": 1000000.0,
               "rope_type": "default"}})"},
           Row{"llama4_text", "rope_parameters", R"({"rope_parameters": {"rope_theta": 500000.0,
               "rope_type": "default"}})"},
           Row{"gemma2", "final_logit_softcapping", R"({"final_logit_softcapping": 30.0})"},
           Row{"gemma2", "attn_logit_softcapping", R"({"attn_logit_softcapping": 50.0})"},
       }) {
    CAPTURE(row.arch);
    CAPTURE(row.absent);
    Value config = Checkpoint::open(golden(std::string("arch/") + row.arch)).config();
    config.erase(row.absent);
    const auto absent = logits_of(std::to_string(i++), row.arch, config);
    const Value fields = parse_json(row.fields);
    for (const auto& [key, value] : fields.as_object()) config.set(key, value);
    CHECK(at::equal(absent, logits_of(std::to_string(i++), row.arch, config)));
  }
  Value config = Checkpoint::open(golden("arch/gpt_oss")).config();
  config.erase("sliding_window");
  const auto windowed = logits_of("windowed", "gpt_oss", config);
  config.set("sliding_window", Value());
  CHECK_FALSE(at::equal(windowed, logits_of("null", "gpt_oss", config)));
}

TEST_CASE("a text model inside a larger one needs no more fields than its makers published") {
  // Of Gemma 3 with 4 B parameters.
  const TemporaryFolder out;
  std::ofstream(out.path() / "config.json") << R"({"model_type": "gemma3", "text_config": {
      "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
      "num_hidden_layers": 34, "sliding_window": 1024,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}})";
  const Host host;
  OpenOptions open;
  open.weights_optional = true;
  const auto plan = host.plan(Checkpoint::open(out.path(), open));
  std::uint64_t bytes = 0;
  for (const auto& entry : plan.entries)
    if (entry.spec.path.find("layers.0.self_attn.q_proj") != std::string::npos) {
      CHECK(entry.spec.out_features == 8 * 256);
      bytes += entry.bytes_before;
    }
  CHECK(bytes > 0);
}

TEST_CASE("impossible configs are refused with the field's name") {
  const Host host;
  const TemporaryFolder out;
  struct Row {
    const char *arch, *fields, *says;
  };
  int i = 0;
  for (const Row& row : {
           Row{"llama", R"({"rope_parameters": {"rope_type": "spiral"}})", "'spiral'"},
           Row{"llama", R"({"rope_parameters": {"rope_type": "linear", "factor": 0}})", "factor"},
           Row{"llama", R"({"rope_parameters": {"rope_type": "linear"}})", "factor"},
           Row{"llama", R"({"rope_parameters": {"rope_theta": -1}})", "rope_theta"},
           Row{"phi3", R"({"rope_parameters": {"rope_type": "longrope", "short_factor": [1],
                           "long_factor": [1]}})",
               "short_factor"},
           Row{"phi3", R"({"rope_parameters": {"partial_rotary_factor": 2}})",
               "partial_rotary_factor"},
           Row{"gemma2", R"({"layer_types": ["full_attention"]})", "layer_types"},
           Row{"gemma2", R"({"layer_types": ["full_attention", "linear_attention"]})",
               "linear_attention"},
           Row{"gemma2", R"({"attn_logit_softcapping": -1})", "attn_logit_softcapping"},
           Row{"gemma2", R"({"use_bidirectional_attention": true})", "use_bidirectional_attention"},
           Row{"mistral", R"({"sliding_window": -4})", "sliding_window"},
           Row{"mixtral", R"({"num_experts_per_tok": 5})", "num_experts_per_tok"},
           Row{"deepseek_v3", R"({"n_group": 3})", "n_group"},
           Row{"deepseek_v3", R"({"topk_group": 3})", "topk_group"},
           Row{"llama4_text", R"({"no_rope_layers": [1]})", "no_rope_layers"},
           Row{"gpt2", R"({"n_head": 5})", "n_head"},
           Row{"gpt2", R"({"n_layer": 1000000000})", "n_layer"},
           Row{"llama", R"({"num_hidden_layers": 1000000000})", "num_hidden_layers"},
           Row{"mixtral", R"({"num_local_experts": 1000000000})", "num_local_experts"},
           Row{"gpt2", R"({"add_cross_attention": true})", "add_cross_attention"},
           Row{"opt", R"({"layer_norm_elementwise_affine": false})",
               "layer_norm_elementwise_affine"},
           Row{"qwen3_moe", R"({"decoder_sparse_step": 0})", "decoder_sparse_step"},
           Row{"qwen2", R"({"hidden_act": "softsign"})", "softsign"},
       }) {
    CAPTURE(row.fields);
    const auto folder = out.path() / std::to_string(i++);
    with_fields(row.arch, parse_json(row.fields), folder);
    CHECK_THROWS_WITH_AS(host.load(folder), doctest::Contains(row.says), Error);
  }
}

TEST_CASE("a text longer than the positions of the model is refused") {
  const c10::InferenceMode guard;
  const Host host;
  for (const auto& name : {"gpt2", "opt"}) {
    const auto loaded = host.load(golden(std::string("arch/") + name));
    CHECK_THROWS_WITH_AS(forward(*loaded.model, at::zeros({1, 129}, at::kLong)),
                         doctest::Contains("128"), Error);
  }
}

}  // namespace graft::tests
