#include "graft/plugin.h"

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
  static void init(const Runtime&) {}
  static const Quantizer* quantizer(std::string_view method) {
    static const BnbQuantizer bitsandbytes;
    return method == "bitsandbytes" ? &bitsandbytes : nullptr;
  }
};

}  // namespace graft::bnb

GRAFT_PLUGIN(graft::bnb::Plugin, "org.graft.bnb", "0.1.0");
