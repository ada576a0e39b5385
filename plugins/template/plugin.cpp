#include "graft/plugin.h"

#include "operators.h"
#include "quantizer.h"

namespace org::example::rtn8 {

struct Plugin {
  static constexpr const char* summary = "int8 rows, rounded to the nearest of 255 steps";
  static constexpr graft_claim claims[] = {
      // method, module class, device, priority
      {"rtn8", "Linear", "cpu", 0},
  };
  static constexpr graft_kernel kernels[] = {
      // operator, device, instructions it needs
      {"graft_rtn8::linear", "cpu", ""},
  };
  static void init(const graft::Runtime&) { register_operators(); }
  static const graft::Quantizer* quantizer(std::string_view method) {
    static const Rtn8Quantizer rtn8;
    return method == "rtn8" ? &rtn8 : nullptr;
  }
};

}  // namespace org::example::rtn8

GRAFT_PLUGIN(org::example::rtn8::Plugin, "org.example.rtn8", "0.1.0");
