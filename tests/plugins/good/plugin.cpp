#include "graft/plugin.h"

#include "row_linear.h"

namespace graft::test::good {

struct Plugin {
  static constexpr const char* summary = "int8 rows, the least that a method can be";
  static constexpr graft_claim claims[] = {{"rows8", "Linear", "cpu", 0}};
  static void init(const Runtime& runtime) { runtime.log(LogLevel::info, "good morning"); }
  static const Quantizer* quantizer(std::string_view method) {
    static const RowQuantizer rows("rows8");
    return method == "rows8" ? &rows : nullptr;
  }
};

}  // namespace graft::test::good

GRAFT_PLUGIN(graft::test::good::Plugin, "org.graft.test.good", "1.0.0");
