#include "graft/quantizer.h"

#include "graft/error.h"

namespace graft {

QuantConfig::~QuantConfig() = default;
Quantizer::~Quantizer() = default;
Findings::~Findings() = default;

TensorSpec TensorSpec::of(std::string name, std::vector<at::ScalarType> dtypes,
                          std::vector<std::int64_t> shape) {
  TensorSpec out;
  out.name = std::move(name);
  out.dtypes = std::move(dtypes);
  out.bytes = out.dtypes.empty() ? 1 : c10::elementSize(out.dtypes.front());
  for (const auto size : shape) out.bytes *= static_cast<std::uint64_t>(size);
  out.shape = std::move(shape);
  return out;
}

std::shared_ptr<const QuantConfig> QuantConfig::for_module(std::span<const std::string>) const {
  return shared_from_this();
}

Value Quantizer::describe_modules(const QuantConfig& config,
                                  std::span<const PlannedModule> modules) const {
  for (const auto& module : modules) {
    if (!module.config) continue;
    const auto usual = config.for_module(module.names);
    if (!usual || describe(*usual) != describe(*module.config))
      throw Error(ErrorKind::usage,
                  "the method's files cannot say that a module has settings of its own")
          .at(module.names.front())
          .expected(usual ? to_json(describe(*usual)) : "dense")
          .found(to_json(describe(*module.config)))
          .hint("leave out the options of the rule");
  }
  return describe(config);
}

void Quantizer::require_portable(const ModuleSpec&, const QuantConfig&) const {}

QuantConfigPtr Quantizer::in_format(const QuantConfig&, const std::string& format) const {
  std::string known;
  for (const auto& name : formats()) known += (known.empty() ? "" : ", ") + name;
  throw Error(ErrorKind::usage, "the method has no such format")
      .expected(known.empty() ? "none: it has one layout only" : "one of " + known)
      .found(quote(format));
}

Value Quantizer::with_bits(const Value&, const std::vector<std::pair<std::string, int>>&) const {
  throw Error(ErrorKind::usage, "the method's modules all have the same bits")
      .hint("leave out the choice of bits");
}

std::shared_ptr<const Findings> Quantizer::examine(const ModuleSpec&, const QuantConfig&,
                                                   const Tensors&) const {
  return nullptr;
}

Settled Quantizer::settle(const QuantConfigPtr& config, std::span<const Examined> modules,
                          Trust) const {
  Settled out;
  out.config = config;
  for (const auto& module : modules) out.configs.push_back(module.config);
  return out;
}

void Quantizer::fill(nn::Block& module, const QuantConfig&, const Tensors& tensors) const {
  for (const auto& [name, meta] : module.own_tensors()) module.set_tensor(name, tensors.at(name));
}

Tensors Quantizer::save(const nn::Block& module, const QuantConfig&) const {
  Tensors out;
  for (const auto& [name, tensor] : module.own_tensors()) out.set(name, tensor);
  return out;
}

CalibrationUse Quantizer::calibration(const QuantConfig&) const { return CalibrationUse::none; }

GroupResult Quantizer::quantize(const ModuleGroup&, const Context&) const {
  throw Error(ErrorKind::usage, "this plugin cannot quantize, it only loads")
      .hint("load a checkpoint that is quantized already");
}

at::Tensor Quantizer::input_scales(const ModuleGroup&, const Context&) const { return {}; }

bool Quantizer::searches_scales(const QuantConfig&) const { return false; }

bool Quantizer::moves_codes(const QuantConfig&) const { return false; }

WeightNeighbours Quantizer::neighbours(const nn::Block&) const {
  throw Error(ErrorKind::usage, "the method's codes cannot be moved");
}

std::shared_ptr<nn::Block> Quantizer::moved(const nn::Block&, const ModuleSpec&, const QuantConfig&,
                                            const at::Tensor&) const {
  throw Error(ErrorKind::usage, "the method's codes cannot be moved");
}

void Context::advance(std::string_view stage, std::uint64_t done, std::uint64_t total) const {
  if (progress && !progress(stage, done, total))
    throw Error(ErrorKind::interrupted, "interrupted").at(stage);
}

bool Quantizer::quantizes_offloaded(const QuantConfig&) const { return true; }

}  // namespace graft
