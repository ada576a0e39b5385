#include "graft/plugin.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "../good/row_linear.h"

namespace graft::test::faulty {

/// Rows that go wrong where the settings say: {"fault": what, "where": module path or step}.
class FaultyQuantizer : public RowQuantizer {
 public:
  FaultyQuantizer() : RowQuantizer("faulty8") {}

  QuantConfigPtr parse(const Value& settings) const override {
    go_wrong(settings, "parse");
    if (settings.get_string("where", "") == "parse" &&
        settings.get_string("fault", "") == "nothing")
      return nullptr;
    return RowQuantizer::parse(settings);
  }

  std::vector<std::string> settings_files() const override {
    if (std::getenv("GRAFT_TEST_SETTINGS_FILES")) throw std::runtime_error("no names today");
    return {};
  }

  std::vector<OptionSpec> options() const override {
    auto out = RowQuantizer::options();
    for (const std::string name : {"fault", "where"})
      out.push_back(
          {name, "--" + name, OptionSpec::Type::text, std::string(), "For tests", {}, {}});
    return out;
  }

  Support supports(const ModuleSpec& spec, const QuantConfig& config) const override {
    go_wrong(settings_of(config), "supports");
    return RowQuantizer::supports(spec, config);
  }

  std::vector<TensorSpec> tensors(const ModuleSpec& spec,
                                  const QuantConfig& config) const override {
    go_wrong(settings_of(config), "tensors");
    return RowQuantizer::tensors(spec, config);
  }

  std::shared_ptr<nn::Block> build(const ModuleSpec& spec,
                                   const QuantConfig& config) const override {
    const Value& settings = settings_of(config);
    if (settings.get_string("where", "") == spec.path) {
      const std::string fault = settings.get_string("fault", "");
      if (fault == "nothing") return nullptr;
      if (fault == "interface") return std::make_shared<nn::Block>("NotUnary");
      auto module = RowQuantizer::build(spec, config);
      if (fault == "memory") module->set_tensor("scales", at::empty({spec.out_features}));
      if (fault == "memory") return module;
    }
    go_wrong(settings, spec.path);
    return RowQuantizer::build(spec, config);
  }

  GroupResult quantize(const ModuleGroup& group, const Context& context) const override {
    const Value& settings = settings_of(*group.members.front().config);
    if (settings.get_string("where", "") == "quantize " + group.members.front().spec.path) {
      const std::string fault = settings.get_string("fault", "");
      if (fault == "nothing") return {};
      if (fault == "advance") context.advance("rows", 0, 1);
      if (fault == "deaf" && context.progress) context.progress("rows", 0, 1);
      if (fault == "meta")
        return {{RowQuantizer::build(group.members.front().spec, *group.members.front().config)}};
    }
    go_wrong(settings, "quantize " + group.members.front().spec.path);
    return RowQuantizer::quantize(group, context);
  }

 private:
  static const Value& settings_of(const QuantConfig& config) {
    return dynamic_cast<const RowConfig&>(config).settings;
  }

  static void go_wrong(const Value& settings, const std::string& where) {
    if (settings.get_string("where", "") != where) return;
    const std::string fault = settings.get_string("fault", "");
    if (fault == "model")
      throw Error(ErrorKind::model, "the scales are odd").expected("even ones").found("3");
    if (fault == "standard") throw std::runtime_error("the plugin tripped\nover a backtrace");
    if (fault == "torch") TORCH_CHECK(false, "the tensor tripped");
    if (fault == "memory") throw std::bad_alloc();
    if (fault == "odd") throw 42;
    if (fault == "hang") {
      if (const char* marker = std::getenv("GRAFT_TEST_MARKER")) std::ofstream(marker) << "here";
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
};

struct Plugin {
  static constexpr const char* summary = "goes wrong where it is told to";
  static constexpr graft_claim claims[] = {{"faulty8", "Linear", "cpu", 0}};
  static void init(const Runtime&) {}
  static const Quantizer* quantizer(std::string_view method) {
    static const FaultyQuantizer rows;
    return method == "faulty8" ? &rows : nullptr;
  }
};

}  // namespace graft::test::faulty

GRAFT_PLUGIN(graft::test::faulty::Plugin, "org.graft.test.faulty", "1.0.0");
