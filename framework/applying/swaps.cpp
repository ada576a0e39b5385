#include "applying/swaps.h"

#include <ATen/ATen.h>

#include "applying/staging.h"
#include "graft/error.h"
#include "graft/module_graph.h"

namespace graft {

Swaps::~Swaps() {
  if (kept_) return;
  for (auto done = done_.rbegin(); done != done_.rend(); ++done)
    replace_at(root_, done->first, done->second);
}

void Swaps::swap(const std::string& path, const std::shared_ptr<torch::nn::Module>& next) {
  done_.reserve(done_.size() + 1);
  done_.emplace_back(path, replace_at(root_, path, next));
}

void Swaps::swap_everywhere(const PlanEntry& entry,
                            const std::shared_ptr<torch::nn::Module>& next) {
  swap(entry.spec.path, next);
  for (const auto& path : entry.also) swap(path, next);
}

void tell(const Observer& observer, const PlanEntry& entry, const std::string& new_class) {
  if (observer) observer(entry.spec.path, entry.spec.class_name, new_class, entry.spec.device);
}

std::shared_ptr<torch::nn::Module> module_at(const std::shared_ptr<nn::Block>& root,
                                             const std::string& path) {
  if (path.empty()) return root;
  const auto [parent, name] = get_module_from_name(root, path);
  return *parent->named_children().find(name);
}

nn::Block& block_at(const std::shared_ptr<nn::Block>& root, const std::string& path) {
  auto* block = dynamic_cast<nn::Block*>(module_at(root, path).get());
  if (!block) throw Error(ErrorKind::internal, "not a block").at(path);
  return *block;
}

bool is_converted(const PlanEntry& entry, const std::shared_ptr<nn::Block>& root) {
  return entry.action == Action::quantize && entry.replacement != entry.spec.class_name &&
         class_name_of(*module_at(root, entry.spec.path)) == entry.replacement;
}

std::pair<std::string, std::string> split_name(const std::string& name) {
  const auto dot = name.rfind('.');
  return {name.substr(0, dot), name.substr(dot + 1)};
}

at::Tensor tensor_at(const std::shared_ptr<nn::Block>& root, const std::string& full) {
  const auto [path, name] = split_name(full);
  for (const auto& [own, tensor] : block_at(root, path).own_tensors())
    if (own == name) return tensor;
  return {};
}

Tensors read_all(const Checkpoint& checkpoint, const PlanEntry& entry, const nn::Block* like,
                 Staging* staging) {
  Tensors out;
  for (const auto& planned : entry.tensors) {
    auto tensor = read_planned(checkpoint, planned, staging);
    if (!planned.into) {
      out.set(planned.name, std::move(tensor));
      continue;
    }
    if (!out.find(planned.name))
      for (const auto& [name, whole] : like->own_tensors())
        if (name == planned.name) out.set(name, at::empty(whole.sizes(), tensor.options()));
    planned.into->of(out.at(planned.name)).copy_(tensor);
  }
  return out;
}

Tensors dense_tensors(const nn::Block& block, at::ScalarType dtype) {
  ModuleSpec now;
  block.describe(now);
  Tensors out;
  for (const auto& [name, tensor] : block.own_tensors())
    out.set(name, in_dtype(now.input_major && name == "weight" ? tensor.t() : tensor, dtype));
  return out;
}

at::Tensor in_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.is_floating_point() ? tensor.to(dtype) : tensor;
}

void check_made(const PlanEntry& entry, const std::shared_ptr<nn::Block>& made, bool on_meta) {
  const auto defect = [&](const std::string& what) {
    Error error(ErrorKind::plugin, "the plugin " + entry.plugin + " " + what);
    return error.at(entry.spec.path)
        .hint("this is a defect of the plugin: report it to its author, or run without it");
  };
  if (!made) throw defect("made no module");
  if (class_name_of(*made) != entry.replacement)
    throw defect("made another class than it announced")
        .expected(entry.replacement)
        .found(class_name_of(*made));
  for (const auto& [name, tensor] : made->own_tensors())
    if (tensor.is_meta() != on_meta)
      throw defect(on_meta ? "built the tensor " + quote(name) + " off meta"
                           : "left the tensor " + quote(name) + " on meta");
}

}  // namespace graft
