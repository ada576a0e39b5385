#include "graft/plugin.h"

// What an author writes who cannot start here: the exception stays inside the plugin.
namespace graft::test::throwing_init {

struct Plugin {
  static constexpr const char* summary = "throws while it starts";
  static constexpr graft_claim claims[] = {{"mood", "Linear", "cpu", 0}};
  static void init(const Runtime&) { throw std::runtime_error("no operators today\nbacktrace"); }
  static const Quantizer* quantizer(std::string_view) { return nullptr; }
};

}  // namespace graft::test::throwing_init

GRAFT_PLUGIN(graft::test::throwing_init::Plugin, "org.graft.test.throwing_init", "1.2.3");
