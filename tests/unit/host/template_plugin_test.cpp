// plugins/template does what docs/writing-a-plugin.md says of it.

#include <ATen/ATen.h>

#include "graft/host.h"
#include "graft/module_graph.h"

#include "model_folder.h"
#include "model_logits.h"
#include "thrown_by.h"

using namespace graft;
using test::logits;
using test::contains;
namespace fs = std::filesystem;

namespace {

Host host_with_template() {
  HostOptions options;
  options.plugin_directories = {fs::path(GRAFT_TEST_PLUGINS) / "rtn8"};
  return Host(options);
}

LoadOptions rtn8(const std::string& more = "") {
  LoadOptions options;
  options.quantization_config = parse_json(R"({"quant_method": "rtn8")" + more + "}");
  return options;
}

}  // namespace

TEST_CASE("the template's plugin quantizes a model that is saved, verified and loaded again") {
  const Host host = host_with_template();
  for (const char* name : {"vectors/tiny_llama_dense_fp16", "arch/mixtral", "arch/gpt2"}) {
    CAPTURE(name);
    const auto made = host.load(test::golden(name), rtn8());
    const auto dense = logits(host.load(test::golden(name)).model);
    const auto y = logits(made.model);
    CHECK((y - dense).abs().max().item<double>() < 0.05 * dense.abs().max().item<double>());
    const test::TemporaryFolder folder;
    host.save(made, folder.path() / "out");
    const auto again = host.load(folder.path() / "out");
    CHECK(again.plan.pre_quantized);
    CHECK(again.plan.count(Action::quantize) == made.plan.count(Action::quantize));
    CHECK(at::equal(logits(again.model), y));
  }
}

TEST_CASE("the template's own rules take experts apart and keep a gate dense") {
  const Host host = host_with_template();
  const auto mixtral = host.load(test::golden("arch/mixtral"), rtn8());
  CHECK(count(mixtral.model, "MixtralExperts") == 0);
  CHECK(count(mixtral.model, "SequentialMixtralExperts") > 0);
  const Plan plan = host.plan(Checkpoint::open(test::golden("arch/qwen2_moe")), rtn8());
  std::size_t gates = 0;
  for (const auto& entry : plan.entries)
    if (entry.spec.path.ends_with(".shared_expert_gate")) {
      ++gates;
      CHECK(contains(entry.reason, "one row decides for an expert ("));
      CHECK(contains(entry.reason, "libgraft_rtn8.yaml:6)"));
    }
  CHECK(gates > 0);
}

TEST_CASE("the gate of a shared expert stays dense under gptq and awq, as other runtimes have it") {
  const Host host;
  for (const char* method : {"gptq", "awq"}) {
    CAPTURE(method);
    LoadOptions options;
    options.quantization_config = parse_json(R"({"group_size": 32})");
    options.quantization_config.set("quant_method", method);
    const auto plan = host.plan(Checkpoint::open(test::golden("arch/qwen2_moe")), options);
    std::size_t gates = 0;
    for (const auto& entry : plan.entries)
      if (entry.spec.path.ends_with(".shared_expert_gate")) {
        ++gates;
        CHECK(entry.action == Action::keep);
        CHECK(contains(entry.reason, "gate of the shared expert ("));
      }
    CHECK(gates > 0);
  }
}

TEST_CASE("the template's plugin leaves out what its settings say and lists unknown ones") {
  const Host host = host_with_template();
  const auto checkpoint = Checkpoint::open(test::golden("vectors/tiny_llama_dense_fp16"));
  const Plan plan =
      host.plan(checkpoint, rtn8(R"(, "modules_to_not_convert": ["up_proj"], "colour": 1)"));
  CHECK(plan.count(Action::quantize) == 12);
  REQUIRE(plan.doubts.size() == 1);
  CHECK(contains(plan.doubts[0], "'colour'"));
  const auto text =
      test::message_of([&] { host.plan(checkpoint, rtn8(R"(, "modules_to_not_convert": 3)")); });
  CHECK(contains(text, "modules_to_not_convert"));
  CHECK(contains(text, "org.example.rtn8"));
}
