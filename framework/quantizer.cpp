#include "graft/quantizer.h"

#include "graft/error.h"

namespace graft {

QuantConfig::~QuantConfig() = default;
Quantizer::~Quantizer() = default;

std::shared_ptr<const QuantConfig> QuantConfig::for_module(const std::string&) const {
  return shared_from_this();
}

GroupResult Quantizer::quantize(std::span<const GroupMember>, const Context&) const {
  throw Error(ErrorKind::usage, "this method cannot quantize without calibration data")
      .hint("load a checkpoint that is quantized already");
}

void Context::advance(std::string_view stage, std::uint64_t done, std::uint64_t total) const {
  if (progress && !progress(stage, done, total))
    throw Error(ErrorKind::interrupted, "interrupted").at(stage);
}

}  // namespace graft
