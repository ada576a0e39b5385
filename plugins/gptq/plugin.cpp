#include "graft/plugin.h"

#include "operators.h"
#include "quantizer.h"

namespace graft::gptq {

struct Plugin {
  static constexpr const char* summary = "GPTQ: packed groups of 2, 3, 4 and 8 bits, v1 and v2";
  static constexpr graft_claim claims[] = {
      {"gptq", "Linear", "cpu", 0},
#if GRAFT_HAS_CUDA
      {"gptq", "Linear", "cuda", 0},
#endif
  };
  static constexpr graft_kernel kernels[] = {
      {"graft_gptq::dequantize", "cpu", ""},
      {"graft_gptq::linear", "cpu", ""},
#if GRAFT_HAS_CUDA
      {"graft_gptq::dequantize", "cuda", ""},
      {"graft_gptq::linear", "cuda", ""},
#endif
  };
  static void init(const Runtime&) { register_operators(); }
  static const Quantizer* quantizer(std::string_view method) {
    static const GptqQuantizer gptq;
    return method == "gptq" ? &gptq : nullptr;
  }
};

}  // namespace graft::gptq

GRAFT_PLUGIN(graft::gptq::Plugin, "org.graft.gptq", "0.1.0");
