#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>

#include "folder.h"
#include "graft/host.h"

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
