#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstring>

#include "cli/conformance/conformance.h"
#include "graft/error.h"
#include "graft/nn/unary.h"

namespace graft::cli {

void broken(const std::string& what) { throw Error(ErrorKind::plugin, what); }

std::set<std::string> operators_now() {
  std::set<std::string> names;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) names.insert(name.name);
  return names;
}

std::vector<Subject> subjects_of(const PluginLibrary& library) {
  std::vector<Subject> out;
  for (const auto& claim : library.claims()) {
    const Quantizer* quantizer = library.quantizer(claim.method);
    const auto add = [&](Value settings) {
      settings.set("quant_method", claim.method);
      auto config = quantizer->parse(settings);
      if (!config) broken("parse gave no config for " + to_json(settings));
      out.push_back({claim.method, claim.module_class, claim.device, settings, quantizer, config});
    };
    add(Value(Value::Object{}));
    for (const auto& option : quantizer->options())
      for (const auto& choice : option.choices) {
        Value settings{Value::Object{}};
        if (const Value* meaning = option.meaning.find(choice))
          settings = *meaning;
        else if (option.type == OptionSpec::Type::integer)
          settings.set(option.name, std::int64_t{std::stoll(choice)});
        else
          settings.set(option.name, choice);
        add(std::move(settings));
      }
  }
  return out;
}

ModuleSpec module_spec(const Subject& subject, std::int64_t in_features, std::int64_t out_features,
                       bool bias, at::ScalarType dtype) {
  ModuleSpec spec;
  spec.path = "model.layers.0.mlp.up_proj";
  spec.class_name = subject.module_class;
  spec.in_features = in_features;
  spec.out_features = out_features;
  spec.bias = bias;
  spec.dtype = dtype;
  return spec;
}

std::vector<ModuleSpec> trial_specs(const Subject& subject) {
  return {module_spec(subject, 1, 1, false),
          module_spec(subject, 7, 3, true),
          module_spec(subject, 67, 129, false),
          module_spec(subject, 256, 31, true),
          module_spec(subject, 128, 64, true),
          module_spec(subject, 512, 256, false),
          module_spec(subject, 192, 48, true, at::kBFloat16)};
}

at::Tensor random_normal(at::IntArrayRef shape, std::uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions(at::kFloat));
}

GroupMember dense_member(const Subject& subject, const ModuleSpec& spec, std::uint64_t seed) {
  GroupMember member{spec, subject.config, {}};
  member.dense.set(
      "weight", (random_normal({spec.out_features, spec.in_features}, seed) / 16).to(spec.dtype));
  if (spec.bias)
    member.dense.set("bias", random_normal({spec.out_features}, seed + 1).to(spec.dtype));
  return member;
}

namespace {

/// Tensors as a checkpoint of the method could hold them: codes are any bits, floats small and
/// positive.
Tensors random_tensors(const Subject& subject, const ModuleSpec& spec, std::uint64_t seed) {
  const auto generator = at::detail::createCPUGenerator(seed);
  Tensors out;
  for (const auto& tensor : subject.quantizer->tensors(spec, *subject.config)) {
    if (!tensor.required) continue;
    if (!tensor.shape) broken("the required tensor '" + tensor.name + "' has no shape");
    const auto dtype = tensor.dtypes.empty() ? spec.dtype : tensor.dtypes.front();
    if (c10::isFloatingType(dtype)) {
      out.set(tensor.name,
              (at::rand(*tensor.shape, generator, at::TensorOptions(at::kFloat)) * 0.01 + 0.001)
                  .to(dtype));
      continue;
    }
    auto bytes = *tensor.shape;
    bytes.push_back(static_cast<std::int64_t>(c10::elementSize(dtype)));
    out.set(tensor.name, at::randint(0, 256, bytes, generator, at::TensorOptions(at::kByte))
                             .view(dtype)
                             .squeeze(-1));
  }
  return out;
}

}  // namespace

std::shared_ptr<nn::Block> filled_module(const Subject& subject, const ModuleSpec& spec,
                                         std::uint64_t seed) {
  const Support support = subject.quantizer->supports(spec, *subject.config);
  if (!support.yes && support.reason.empty()) broken("supports says no without a reason");
  if (!support.yes) return nullptr;
  if (!subject.quantizer->pre_quantized_by_default()) try {
      const GroupMember member = dense_member(subject, spec, seed);
      auto made = subject.quantizer->quantize({{member}, {}}, {});
      if (made.modules.size() != 1 || !made.modules[0]) broken("quantize made no module");
      return made.modules[0];
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::usage)
        return nullptr;  // these settings do not go with this shape
      throw;
    }
  auto module = subject.quantizer->build(spec, *subject.config);
  subject.quantizer->fill(*module, *subject.config, random_tensors(subject, spec, seed));
  return module;
}

at::Tensor forward(nn::Block& module, const at::Tensor& x) {
  auto* unary = dynamic_cast<nn::Unary*>(&module);
  if (!unary) broken("the replacement is no graft::nn::Unary");
  return unary->forward(x);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  const auto left = a.cpu().contiguous(), right = b.cpu().contiguous();
  return std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

void for_each_trial(const Tried& tried,
                    const std::function<void(const Subject&, const ModuleSpec&)>& body) {
  for (const auto& subject : tried.subjects)
    for (const auto& spec : trial_specs(subject)) {
      try {
        body(subject, spec);
      } catch (const std::exception& error) {
        const std::string what = error.what();
        broken(subject.name() + ", " + std::to_string(spec.out_features) + " x " +
               std::to_string(spec.in_features) + (spec.bias ? " with bias: " : ": ") +
               what.substr(0, what.find('\n')));
      }
    }
}

}  // namespace graft::cli
