#include "graft/plugin.h"

#include "operators.h"
#include "quantizer.h"

namespace graft::awq {

struct Plugin {
  static constexpr const char* summary = "AWQ: groups of 4-bit codes, GEMM, GEMV and GEMVFast";
  static constexpr graft_claim claims[] = {
      {"awq", "Linear", "cpu", 0},
#if GRAFT_HAS_CUDA
      {"awq", "Linear", "cuda", 0},
#endif
  };
  static constexpr graft_kernel kernels[] = {
      {"graft_awq::dequantize", "cpu", ""},
      {"graft_awq::linear", "cpu", ""},
#if GRAFT_HAS_CUDA
      {"graft_awq::dequantize", "cuda", ""},
      {"graft_awq::linear", "cuda", ""},
#endif
  };
  static void init(const Runtime&) { register_operators(); }
  static const Quantizer* quantizer(std::string_view method) {
    static const AwqQuantizer awq;
    return method == "awq" ? &awq : nullptr;
  }
};

}  // namespace graft::awq

GRAFT_PLUGIN(graft::awq::Plugin, "org.graft.awq", "0.1.0");
