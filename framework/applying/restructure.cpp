#include "applying/restructure.h"

#include <map>

#include "graft/error.h"
#include "graft/module_graph.h"

namespace graft {
namespace {

/// The block below `root` that owns the tensor `name` ("3.gate_proj.weight"), and its own name for
/// it.
std::pair<nn::Block*, std::string> owner_of(const std::shared_ptr<nn::Block>& root,
                                            const std::string& name) {
  const auto dot = name.rfind('.');
  if (dot == std::string::npos) return {root.get(), name};
  const auto [parent, child] = get_module_from_name(root, name.substr(0, dot));
  const auto* holder = dynamic_cast<const nn::Block*>(parent.get());
  auto* block = holder ? dynamic_cast<nn::Block*>(holder->child(child).get()) : nullptr;
  return {block, name.substr(dot + 1)};
}

}  // namespace

std::vector<nn::TensorPart> parts_of(const nn::Block& former, const Restructuring& how,
                                     const ModuleSpec& spec, const Value& text_config) {
  return how.map ? how.map(spec, text_config) : former.parts();
}

std::shared_ptr<nn::Block> restructured(const nn::Block& former, const Restructuring& how,
                                        const ModuleSpec& spec, const Value& text_config) {
  auto next = how.build(spec, text_config);
  if (!next) throw Error(ErrorKind::plugin, "a replacement was not built").at(spec.path);
  std::map<std::string, at::Tensor> tensors;
  bool has_data = false;
  for (const auto& [name, tensor] : former.own_tensors()) {
    tensors.emplace(name, tensor);
    has_data = has_data || !tensor.is_meta();
  }
  if (!has_data) return next;
  for (const auto& part : parts_of(former, how, spec, text_config)) {
    const auto from = tensors.find(part.from);
    const auto [block, name] = owner_of(next, part.to);
    if (from == tensors.end() || !block)
      throw Error(ErrorKind::plugin, "the map of a replacement names a tensor that is not there")
          .at(quote(part.from) + " -> " + quote(part.to))
          .at(spec.path);
    try {
      if (part.region.shape_in(from->second.sizes()).empty())
        throw Error(ErrorKind::plugin, "the map names a part that " + quote(part.from) + " lacks");
      block->set_tensor(name, part.region.of(from->second));
    } catch (Error& error) {
      throw error.at(part.to).at(spec.path);
    }
  }
  for (const auto& [path, module] : named_modules(next))
    if (const auto* block = dynamic_cast<const nn::Block*>(module.get()))
      for (const auto& [name, tensor] : block->own_tensors())
        if (tensor.is_meta())
          throw Error(ErrorKind::plugin, "the map of a replacement leaves out a tensor")
              .at(path.empty() ? name : path + "." + name)
              .at(spec.path);
  return next;
}

}  // namespace graft
