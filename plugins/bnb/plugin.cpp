#include "graft/plugin.h"

#include "operators.h"
#include "quantizer.h"

namespace graft::bnb {

struct Plugin {
  static constexpr const char* summary =
      "bitsandbytes: NF4 and FP4 with and without double quantization, LLM.int8";
  static constexpr graft_claim claims[] = {
      {"bitsandbytes", "Linear", "cpu", 0},
#if GRAFT_HAS_CUDA
      {"bitsandbytes", "Linear", "cuda", 0},
#endif
  };
  static constexpr graft_kernel kernels[] = {
      {"graft_bnb::quantize_4bit", "cpu", ""},
      {"graft_bnb::dequantize_4bit", "cpu", ""},
      {"graft_bnb::int8_vectorwise_quant", "cpu", ""},
      {"graft_bnb::int8_vectorwise_dequant", "cpu", ""},
#if GRAFT_HAS_CUDA
      {"graft_bnb::quantize_4bit", "cuda", ""},
      {"graft_bnb::dequantize_4bit", "cuda", ""},
      {"graft_bnb::int8_vectorwise_dequant", "cuda", ""},
#endif
  };
  static void init(const Runtime&) { register_operators(); }
  static const Quantizer* quantizer(std::string_view method) {
    static const BnbQuantizer bitsandbytes;
    return method == "bitsandbytes" ? &bitsandbytes : nullptr;
  }
};

}  // namespace graft::bnb

GRAFT_PLUGIN(graft::bnb::Plugin, "org.graft.bnb", "0.1.0");
