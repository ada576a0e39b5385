#include <ATen/ATen.h>

#include <algorithm>

#include "cli/conformance/conformance.h"
#include "graft/error.h"
#include "graft/module_graph.h"

namespace graft::cli {
namespace {

/// The answer of supports(); a refusal has been judged elsewhere.
bool supported(const Subject& subject, const ModuleSpec& spec) {
  return subject.quantizer->supports(spec, *subject.config).yes;
}

void built_on_meta(const Tried& tried) {
  const GuardedMemory memory;
  for (const auto& subject : tried.subjects) {
    const ModuleSpec spec = module_spec(subject, 4096, 4096, true);
    if (!supported(subject, spec)) continue;
    const auto before = GuardedMemory::allocated();
    const auto module = subject.quantizer->build(spec, *subject.config);
    const auto taken = GuardedMemory::allocated() - before;
    if (!module) broken(subject.name() + ": build gave nothing");
    for (const auto& [name, tensor] : module->own_tensors())
      if (!tensor.is_meta())
        broken(subject.name() + ": the tensor '" + name + "' is built in memory");
    if (taken > 1'000'000)
      broken(subject.name() + ": building a module took " + std::to_string(taken) + " bytes");
    const auto announced = subject.quantizer->replacement_class(spec, *subject.config);
    if (class_name_of(*module) != announced)
      broken(subject.name() + ": built a " + class_name_of(*module) + ", announced " + announced);
    ModuleSpec itself;
    module->describe(itself);
    if (itself.in_features != 4096 || itself.out_features != 4096)
      broken(subject.name() + ": the module describes itself as " +
             std::to_string(itself.out_features) + " x " + std::to_string(itself.in_features));
  }
}

/// Saved tensors are those that tensors() announces.
void announced_tensors(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 1);
    if (!module) return;
    const auto specs = subject.quantizer->tensors(spec, *subject.config);
    const Tensors saved = subject.quantizer->save(*module, *subject.config);
    for (const auto& [name, tensor] : saved) {
      const auto found = std::find_if(specs.begin(), specs.end(),
                                      [&](const TensorSpec& one) { return one.name == name; });
      if (found == specs.end()) broken("save gave '" + name + "', which tensors() does not list");
      if (found->shape && tensor.sizes() != at::IntArrayRef(*found->shape))
        broken("save gave '" + name + "' in another shape than tensors() says");
      const auto& dtypes = found->dtypes;
      if (!dtypes.empty() &&
          std::find(dtypes.begin(), dtypes.end(), tensor.scalar_type()) == dtypes.end())
        broken("save gave '" + name + "' as " + std::string(c10::toString(tensor.scalar_type())) +
               ", which tensors() does not allow");
    }
    for (const auto& one : specs)
      if (one.required && !saved.find(one.name)) broken("save left out '" + one.name + "'");
  });
}

void round_trip(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 2);
    if (!module) return;
    const auto& quantizer = *subject.quantizer;
    const Tensors saved = quantizer.save(*module, *subject.config);
    const auto again = quantizer.build(spec, *subject.config);
    quantizer.fill(*again, *subject.config, saved);
    for (const auto& [name, tensor] : again->own_tensors())
      if (tensor.is_meta()) broken("fill left '" + name + "' on meta");
    const auto x = random_normal({3, spec.in_features}, 3);
    if (!same_bits(forward(*again, x), forward(*module, x)))
      broken("a module that is saved and filled again computes something else");
    for (const auto& [name, tensor] : quantizer.save(*again, *subject.config)) {
      const auto* first = saved.find(name);
      if (!first || !same_bits(*first, tensor)) broken("'" + name + "' is saved differently again");
    }
    const auto dense = quantizer.dequantize(*again);
    if (dense.dim() != 2 || dense.size(0) != spec.out_features || dense.size(1) != spec.in_features)
      broken("dequantize gave another shape than [out_features, in_features]");
  });
}

void missing_tensors(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 4);
    if (!module) return;
    const Tensors saved = subject.quantizer->save(*module, *subject.config);
    for (const auto& one : subject.quantizer->tensors(spec, *subject.config)) {
      if (!one.required || one.name == "bias") continue;
      Tensors fewer;
      for (const auto& [name, tensor] : saved)
        if (name != one.name) fewer.set(name, tensor);
      try {
        const auto next = subject.quantizer->build(spec, *subject.config);
        subject.quantizer->fill(*next, *subject.config, fewer);
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::model) continue;
        throw;
      }
      broken("fill takes a module without '" + one.name + "'");
    }
  });
}

void inputs_untouched(const Tried& tried) {
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    const auto module = filled_module(subject, spec, 5);
    if (!module) return;
    const GroupMember member = dense_member(subject, spec, 6);
    const auto weight = member.dense.at("weight").clone();
    try {
      subject.quantizer->quantize({{member}, {}}, {});
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::usage) throw;  // it needs calibration
    }
    if (!same_bits(weight, member.dense.at("weight")))
      broken("quantize writes to the dense weight");
    const Tensors saved = subject.quantizer->save(*module, *subject.config);
    Tensors copies;
    for (const auto& [name, tensor] : saved) copies.set(name, tensor.clone());
    const auto x = random_normal({2, spec.in_features}, 7), before = x.clone();
    forward(*module, x);
    if (!same_bits(x, before)) broken("forward writes to its input");
    for (const auto& [name, tensor] : copies)
      if (!same_bits(tensor, saved.at(name))) broken("forward writes to '" + name + "'");
  });
}

void bounds(const Tried& tried) {
  const GuardedMemory memory;
  for_each_trial(tried, [](const Subject& subject, const ModuleSpec& spec) {
    {
      const auto module = filled_module(subject, spec, 8);
      if (!module) return;
      for (const std::int64_t rows : {1, 2, 5, 17, 33})
        forward(*module, random_normal({rows, spec.in_features}, 9));
      const auto saved = subject.quantizer->save(*module, *subject.config);
      const auto again = subject.quantizer->build(spec, *subject.config);
      subject.quantizer->fill(*again, *subject.config, saved);
      subject.quantizer->dequantize(*again);
    }
    if (GuardedMemory::damaged()) broken("something was written beside a tensor");
  });
}

}  // namespace

std::vector<Check> storage_checks() {
  return {
      {"modules are built on meta, of the class and shape that was announced", built_on_meta},
      {"what is saved is what was announced", announced_tensors},
      {"what is saved and filled again computes and saves the same bits", round_trip},
      {"a missing tensor is refused with an Error", missing_tensors},
      {"dense weights, inputs and filled tensors are not written to", inputs_untouched},
      {"nothing is written beside a tensor", bounds},
  };
}

}  // namespace graft::cli
