#include "graft/plugin.h"

#include "../good/row_linear.h"

namespace graft::test::twin {

/// Claims what the good plugin claims, and builds what examples/special builds.
struct Plugin {
  static constexpr const char* summary = "int8 rows once more";
  static constexpr graft_claim claims[] = {{"rows8", "Linear", "cpu", 0}};
  static void init(const Runtime&) {}
  static const Quantizer* quantizer(std::string_view method) {
    static const RowQuantizer rows("rows8");
    return method == "rows8" ? &rows : nullptr;
  }
  static const Restructuring* restructuring(std::string_view name) {
    static const Restructuring nothing;
    return name == "SequentialCustomExperts" ? &nothing : nullptr;
  }
};

}  // namespace graft::test::twin

GRAFT_PLUGIN(graft::test::twin::Plugin, "org.graft.test.twin", "1.0.0");
