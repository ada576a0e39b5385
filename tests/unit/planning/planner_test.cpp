#include "graft/plan.h"

#include <chrono>

#include "graft/host.h"
#include "graft/module_graph.h"
#include "graft/nn/layers.h"

#include "model_folder.h"
#include "thrown_by.h"

using namespace graft;
using test::contains;

namespace {

namespace fs = std::filesystem;

fs::path plugin(const std::string& name) {
  return fs::path(GRAFT_TEST_PLUGINS) / name / ("libgraft_test_" + name + ".so");
}

HostOptions with_rows() {
  HostOptions options;
  options.plugin_files = {plugin("good"), plugin("faulty")};
  return options;
}

LoadOptions settings(const std::string& json) {
  LoadOptions options;
  options.quantization_config = parse_json(json);
  return options;
}

constexpr const char* kRows = R"({"quant_method":"rows8"})";
const std::string kDense = "vectors/tiny_llama_dense_fp16";
const std::string kNf4 = "vectors/tiny_llama_bnb_nf4_dq";

const PlanEntry& entry(const Plan& plan, const std::string& path) {
  for (const auto& found : plan.entries)
    if (found.spec.path == path) return found;
  FAIL("no entry for " << path);
  return plan.entries.front();
}

bool has(const std::vector<std::string>& list, const std::string& part) {
  for (const auto& item : list)
    if (item.find(part) != std::string::npos) return true;
  for (const auto& item : list) MESSAGE(item);
  return false;
}

void accounts_for_every_byte(const Plan& plan, const Checkpoint& checkpoint) {
  CHECK(plan.bytes_in_checkpoint == checkpoint.total_bytes());
  CHECK(plan.bytes_taken() + plan.bytes_unused == checkpoint.total_bytes());
}

}  // namespace

TEST_CASE("every parameter of a model is in exactly one entry") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const Plan plan = host.plan(checkpoint, settings(kRows));
  CHECK(plan.count(Action::quantize) == 14);
  CHECK(plan.count(Action::keep) == 7);  // embeddings, five norms, the head
  CHECK(plan.missing.empty());
  CHECK(plan.unexpected.empty());
  std::size_t tensors = 0;
  for (const auto& found : plan.entries) tensors += found.tensors.size();
  CHECK(tensors == checkpoint.tensors().size());
  accounts_for_every_byte(plan, checkpoint);
  CHECK(plan.bytes_unused == 0);
  const auto& up = entry(plan, "model.layers.0.mlp.up_proj");
  CHECK(up.replacement == "RowLinear");
  CHECK(up.plugin == "org.graft.test.good");
  CHECK(up.settings == "8 bit rows");
  CHECK(up.reason == "claimed by org.graft.test.good");
  CHECK(up.bytes_after == 96 * 64 + 96 * 4);
  CHECK(contains(entry(plan, "lm_head").reason, "output head ("));
  CHECK(contains(entry(plan, "lm_head").reason, "defaults.yaml:"));
}

TEST_CASE("a rule that keeps a module keeps all below it but what a stronger rule decides") {
  Host host(with_rows());
  host.add_patch("{class: LlamaMLP, methods: \"*\", match: model.layers.0.mlp, keep: thin}");
  host.add_patch("{class: Linear, methods: [rows8], match: model.layers.0.mlp.down_proj}");
  host.add_patch("{class: Linear, methods: [rows8], match: \"*.up_proj\"}");
  const Plan plan = host.plan(Checkpoint::open(test::golden(kDense)), settings(kRows));
  CHECK(plan.count(Action::quantize) == 12);
  CHECK(entry(plan, "model.layers.0.mlp.down_proj").action == Action::quantize);
  CHECK(entry(plan, "model.layers.0.mlp.up_proj").action == Action::keep);
  CHECK(contains(entry(plan, "model.layers.0.mlp.up_proj").reason, "thin"));
  CHECK(entry(plan, "model.layers.1.mlp.up_proj").action == Action::quantize);
}

TEST_CASE("a rule that keeps the root keeps the model") {
  Host host(with_rows());
  host.add_patch("{class: LlamaForCausalLM, methods: \"*\", keep: all of it}");
  const Plan plan = host.plan(Checkpoint::open(test::golden(kDense)), settings(kRows));
  CHECK(plan.count(Action::quantize) == 0);
  CHECK(contains(entry(plan, "model.layers.1.mlp.up_proj").reason, "all of it"));
}

TEST_CASE("options of a rule that nobody uses are told, and wrong ones name the rule") {
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const auto gptq = settings(R"({"quant_method": "gptq", "bits": 4, "group_size": 32})");
  Host host;
  host.add_patch("{class: Linear, methods: [gptq], match: \"*.up_proj\", options: {bit: 8}}");
  CHECK(has(host.plan(checkpoint, gptq).doubts, "nobody uses the option 'bit' of a registry rule"));
  Host other;
  other.add_patch("{class: Linear, methods: [gptq], match: \"*.up_proj\", options: {bits: 5}}");
  const auto error = test::thrown_by([&] { other.plan(checkpoint, gptq); });
  CHECK(contains(error.what(), "API:1"));
  CHECK(contains(error.what(), "2, 3, 4 or 8"));
}

TEST_CASE("the ledger accounts for unexpected tensors and copies of tied ones") {
  const Host host(with_rows());
  const test::ModelFolder fewer(kDense, {{"num_hidden_layers", 1}});
  const auto one = Checkpoint::open(fewer.path());
  const Plan plan = host.plan(one, settings(kRows));
  CHECK(has(plan.unexpected, "'model.layers.1.mlp.up_proj.weight'"));
  CHECK(plan.bytes_unused > 0);
  accounts_for_every_byte(plan, one);

  const test::ModelFolder tied(kDense, {{"tie_word_embeddings", true}});
  const auto copy = Checkpoint::open(tied.path());
  const Plan both = host.plan(copy, settings(kRows));
  CHECK(has(both.notes,
            "'lm_head.weight' is in the checkpoint although the config ties it to "
            "'model.embed_tokens.weight', which is used"));
  CHECK(both.tied == std::vector<std::string>{"lm_head.weight"});
  CHECK(both.bytes_unused == 64 * 64 * 2);
  accounts_for_every_byte(both, copy);
  CHECK(entry(both, "lm_head").reason == "tied to model.embed_tokens.weight");
  CHECK(entry(both, "model.embed_tokens").reason == "tied weight");
}

TEST_CASE("a prefix of the checkpoint's names is taken off, and twins by it are told apart") {
  const Host host;
  const test::TemporaryFolder folder;
  fs::copy(test::golden("arch/bert"), folder.path() / "m");
  const auto plain = Checkpoint::open(folder.path() / "m");
  const Plan plan = host.plan(plain);
  CHECK(plan.missing.empty());
  accounts_for_every_byte(plan, plain);
}

TEST_CASE("what is missing and what does not fit is told at once, before a weight is read") {
  const Host host(with_rows());
  const test::ModelFolder more(kDense, {{"num_hidden_layers", 3}, {"intermediate_size", 128}});
  const auto checkpoint = Checkpoint::open(more.path());
  const Plan plan = host.plan(checkpoint, settings(kRows));
  CHECK(has(plan.missing, "'model.layers.2.mlp.up_proj.weight'"));
  CHECK(
      has(plan.mismatched, "'model.layers.0.mlp.up_proj.weight' is [96, 64], expected [128, 64]"));
  const auto error = test::thrown_by([&] { host.load(checkpoint, settings(kRows)); });
  CHECK(error.kind() == ErrorKind::model);
  CHECK(contains(error.what(), "the checkpoint lacks 13 tensor(s) that the model needs: "));
}

TEST_CASE("an integer tensor in the place of a dense weight is refused") {
  const Host host;
  const test::ModelFolder eight("vectors/tiny_llama_bnb_int8", {{"quantization_config", Value()}});
  const auto checkpoint = Checkpoint::open(eight.path());
  const Plan plan = host.plan(checkpoint);
  CHECK(has(plan.mismatched, "'model.layers.0.mlp.up_proj.weight' is I8, expected a float type"));
  CHECK(has(plan.unexpected, "'model.layers.0.mlp.up_proj.SCB'"));
  accounts_for_every_byte(plan, checkpoint);
}

TEST_CASE("--strict refuses what is unexpected, unmatched, unsupported or unknown") {
  auto options = with_rows();
  const Host lenient(options);
  options.strict = true;
  const Host strict(options);
  const test::ModelFolder folder(kDense);
  const auto checkpoint = Checkpoint::open(folder.path());
  const auto why = [&](const std::string& json) {
    lenient.load(checkpoint, settings(json));
    return test::thrown_by([&] { strict.load(checkpoint, settings(json)); });
  };
  const auto unknown = why(R"({"quant_method":"rows8","colour":"red"})");
  CHECK(unknown.kind() == ErrorKind::model);
  CHECK(contains(unknown.what(), "nobody uses the field 'colour' of the quantization_config"));
  const auto unmatched = why(R"({"quant_method":"rows8","skip":["up_prok"]})");
  CHECK(unmatched.kind() == ErrorKind::coverage);
  CHECK(contains(unmatched.what(), "the skip entry 'up_prok' matches no module"));
  const auto unsupported = why(R"({"quant_method":"rows8","most_columns":64})");
  CHECK(unsupported.kind() == ErrorKind::coverage);
  CHECK(contains(unsupported.what(),
                 "2 module(s) stay dense: 'model.layers.0.mlp.down_proj' "
                 "(unsupported: org.graft.test.good: it has more than 64 columns)"));
  strict.load(checkpoint, settings(kRows));

  const test::ModelFolder fewer(kDense, {{"num_hidden_layers", 1}});
  const auto unexpected = test::thrown_by([&] { strict.load(fewer.path(), settings(kRows)); });
  CHECK(unexpected.kind() == ErrorKind::coverage);
  CHECK(contains(unexpected.what(), "tensor(s) of the checkpoint belong to no module"));
}

TEST_CASE("a skip list keeps modules dense and says which entry it was") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const Plan plan =
      host.plan(checkpoint, settings(R"({"quant_method":"rows8","skip":["self_attn","x.y"]})"));
  CHECK(entry(plan, "model.layers.0.self_attn.q_proj").reason == "skip list: 'self_attn'");
  CHECK(plan.count(Action::quantize) == 6);
  CHECK(has(plan.unmatched, "the skip entry 'x.y' matches no module"));
  CHECK(plan.unmatched.size() == 1);
}

TEST_CASE("entries of a quantized checkpoint's skip list that match nothing are no concern") {
  const Host host;
  auto config = test::config_of(kNf4);
  Value quantization = config.at("quantization_config");
  quantization.set("llm_int8_skip_modules", Value(Value::Array{"lm_head", "nowhere"}));
  const test::ModelFolder folder(kNf4, {{"quantization_config", quantization}});
  const Plan plan = host.plan(Checkpoint::open(folder.path()));
  CHECK(plan.count(Action::quantize) == 14);
  CHECK(plan.unmatched.empty());
}

TEST_CASE("the tensors of a quantized checkpoint decide, not the rules") {
  HostOptions options;
  const test::TemporaryFolder folder;
  options.registry_files = {
      folder.write("r.yaml",
                   "graft: 1\npatches:\n"
                   "  - {class: Linear, methods: '*', match: '*.up_proj', keep: a wish}\n")};
  const Host host(options);
  const auto checkpoint = Checkpoint::open(test::golden(kNf4));
  const Plan plan = host.plan(checkpoint);
  CHECK(entry(plan, "model.layers.0.mlp.up_proj").action == Action::quantize);
  CHECK(entry(plan, "lm_head").action == Action::keep);
  CHECK(contains(entry(plan, "lm_head").reason, "output head"));
  plan.check(/*strict=*/true);
}

TEST_CASE("a user's pattern that matches nothing is told with its line") {
  auto options = with_rows();
  const test::TemporaryFolder folder;
  options.registry_files = {folder.write(
      "r.yaml",
      "graft: 1\npatches:\n  - {class: '*', methods: '*', match: model.norn, keep: x}\n")};
  const Host host(options);
  const Plan plan = host.plan(Checkpoint::open(test::golden(kDense)), settings(kRows));
  REQUIRE(plan.unmatched.size() == 1);
  CHECK(contains(plan.unmatched[0],
                 "r.yaml:3: the pattern 'model.norn' matches no module; did you "
                 "mean 'model.norm'?"));
}

TEST_CASE("an unknown method names what is installed and what is near") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  const auto error =
      test::thrown_by([&] { host.plan(checkpoint, settings(R"({"quant_method":"row8"})")); });
  CHECK(error.kind() == ErrorKind::plugin);
  CHECK(
      contains(error.what(), "no plugin claims the quantization method 'row8': expected one of "));
  CHECK(contains(error.what(), "rows8; did you mean 'rows8'?"));
}

TEST_CASE("what a plugin throws while planning names the plugin, its file and the module") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  for (const std::string step : {"parse", "supports", "tensors"}) {
    CAPTURE(step);
    const auto error = test::thrown_by([&] {
      host.plan(checkpoint, settings(R"({"quant_method":"faulty8","fault":"standard","where":")" +
                                     step + "\"}"));
    });
    CHECK(error.kind() == ErrorKind::plugin);
    CHECK(contains(error.what(), "plugin org.graft.test.faulty 1.0.0"));
    CHECK(contains(error.what(), "libgraft_test_faulty.so"));
    CHECK(contains(error.what(), "it failed with 'the plugin tripped'"));
    if (step != "parse") CHECK(contains(error.what(), "model.layers.0.self_attn.q_proj"));
  }
}

TEST_CASE("a folder with config.json alone is planned from its skeleton") {
  const Host host(with_rows());
  const test::ConfigFolder folder(test::config_of(kDense));
  const Plan plan = host.plan(folder.open(), settings(kRows));
  CHECK(plan.count(Action::quantize) == 14);
  CHECK(plan.missing.empty());
  CHECK(plan.bytes_in_checkpoint == 0);
}

TEST_CASE("a skeleton of 70 billion parameters is planned in little memory") {
  const Host host(with_rows());
  const test::ConfigFolder folder(test::llama_70b());
  const auto checkpoint = folder.open();
  host.plan(Checkpoint::open(test::golden(kDense)), settings(kRows));  // what is only set up once
  const auto before = test::resident_bytes();
  const auto start = std::chrono::steady_clock::now();
  const Plan plan = host.plan(checkpoint, settings(kRows));
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto grown = test::resident_bytes() - std::min(before, test::resident_bytes());
  CHECK(plan.count(Action::quantize) == 560);
  CHECK(plan.bytes_before() == 141'107'412'992);
  CHECK(grown < 300'000'000);
  MESSAGE("planned 70 B parameters in " << took << " s, memory grew by " << grown / 1000 << " kB");
}

TEST_CASE("the same inputs give the same plan") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kDense));
  CHECK(to_json(host.plan(checkpoint, settings(kRows)).to_value()) ==
        to_json(Host(with_rows()).plan(checkpoint, settings(kRows)).to_value()));
}

TEST_CASE("settings given for a model of another method are refused, for the same they lose") {
  const Host host(with_rows());
  const auto checkpoint = Checkpoint::open(test::golden(kNf4));
  const auto error = test::thrown_by([&] { host.plan(checkpoint, settings(kRows)); });
  CHECK(error.kind() == ErrorKind::usage);
  CHECK(contains(error.what(),
                 "the model is quantized already, by another method: expected 'rows8', "
                 "found 'bitsandbytes'"));
}
