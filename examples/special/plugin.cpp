#include "graft/plugin.h"

#include "sequential_custom_experts.h"
#include "special_quantizer.h"

namespace org::example::special {

/// Serves two classes of somebody's own model: experts that it takes apart, and a linear layer that
/// it quantizes under the methods that it claims. The methods themselves are other plugins'.
struct Plugin {
  static constexpr const char* summary = "CustomExpertModule and SpecialLinear";
  static constexpr graft_claim claims[] = {
      {"gptq", "SpecialLinear", "cpu", 0},
      {"awq", "SpecialLinear", "cpu", 0},
  };
  static void init(const graft::Runtime&) {}
  static const graft::Quantizer* quantizer(std::string_view method) {
    static const SpecialQuantizer gptq("gptq"), awq("awq");
    return method == "gptq" ? &gptq : method == "awq" ? &awq : nullptr;
  }
  static const graft::Restructuring* restructuring(std::string_view name) {
    static const graft::Restructuring experts = separate_custom_experts();
    return name == "SequentialCustomExperts" ? &experts : nullptr;
  }
};

}  // namespace org::example::special

GRAFT_PLUGIN(org::example::special::Plugin, "org.example.special", "0.1.0");
