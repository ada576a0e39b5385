// The quantization_config of the methods that graft ships.

#include "awq/settings.h"
#include "bnb/settings.h"
#include "fuzz.h"
#include "gptq/settings.h"

using namespace graft;
using namespace graft::fuzz;

namespace {

template <class Config>
void read(const Value& settings) {
  accepts([&] {
    const auto config = Config::parse(settings);
    require(!config->summary().empty());
    const std::vector<std::string> names{"model.layers.0.mlp.down_proj"};
    config->for_module(names);
    const Value written = config->describe();
    require(accepts([&] { Config::parse(written); }), to_json(written));
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  accepts([&] {
    const Value settings = parse_json(as_text(data, size));
    read<gptq::GptqConfig>(settings);
    read<awq::AwqConfig>(settings);
    read<bnb::BnbConfig>(settings);
  });
  return 0;
}
