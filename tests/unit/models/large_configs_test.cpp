#include <doctest/doctest.h>

#include <chrono>

#include "folder.h"
#include "graft/host.h"

namespace graft::tests {

// The configs are written from what the models' makers published; there are no weights.
TEST_CASE("large mixtures of experts are planned from their configs alone") {
  struct Row {
    const char* name;
    std::uint64_t parameters;  ///< of the text model
    std::uint64_t in_float32;  ///< of them, whatever the model's dtype
  };
  const Host host;
  for (const Row& row :
       {Row{"mixtral-8x7b", 46'702'792'704, 0}, Row{"qwen3-30b-a3b", 30'532'122'624, 0},
        Row{"llama-4-scout", 107'769'861'120, 0}, Row{"deepseek-v3", 671'026'419'200, 58 * 256},
        Row{"gpt-oss-120b", 116'829'156'672, 0}}) {
    CAPTURE(std::string(row.name));
    OpenOptions open;
    open.weights_optional = true;
    const auto checkpoint = Checkpoint::open(golden(std::string("configs/") + row.name), open);
    LoadOptions options;
    options.quantization_config = parse_json(
        R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})");
    const auto start = std::chrono::steady_clock::now();
    const Plan plan = host.plan(checkpoint, options);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::uint64_t expert = 0, expert_quantized = 0;
    for (const auto& entry : plan.entries)
      if (entry.spec.path.find(".experts") != std::string::npos) {
        expert += entry.bytes_before;
        if (entry.action == Action::quantize) expert_quantized += entry.bytes_before;
      }
    MESSAGE(std::string(row.name) << ": " << plan.entries.size() << " entries in " << seconds
                                  << " s, " << plan.bytes_before() << " bytes");
    CHECK(plan.bytes_before() == 2 * (row.parameters + row.in_float32));
    CHECK(expert == expert_quantized);
    CHECK(expert * 100 > plan.bytes_before() * 85);
  }
}

}  // namespace graft::tests
